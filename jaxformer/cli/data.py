"""`jaxformer data`: build and inspect token stores, and train tokenizers."""

import argparse
import json
from typing import Any

import jaxformer
from jaxformer.cli.arguments import (
    DONE,
    add_command,
    add_group,
    takes_overrides,
    whole_number,
)
from jaxformer.errors import UserError
from jaxformer.paths import local_path


def add(commands: Any) -> None:
    data = add_group(
        commands,
        "data",
        "Build and inspect token stores, and train tokenizers.",
        "jaxformer data prepare configs/quickstart.yaml",
    )
    prepare = add_command(
        data,
        "prepare",
        "Build the token stores that a configuration needs.",
        _data_prepare,
        "jaxformer data prepare configs/quickstart.yaml data.source='text:books/*.txt'",
    )
    prepare.add_argument(
        "--out",
        metavar="PLACE",
        help="a folder on a disk, gs://, s3:// or another that fsspec serves; as data.store_dir",
    )
    prepare.add_argument(
        "--parts",
        type=whole_number(1),
        metavar="N",
        help="share the work among N runs of this command, on any machines",
    )
    prepare.add_argument(
        "--part", type=whole_number(0), metavar="I", help="do only part I of N, from 0 to N - 1"
    )
    prepare.add_argument(
        "--merge", action="store_true", help="check that all parts have ended, and finish the store"
    )
    prepare.add_argument(
        "--runner",
        choices=("ray",),
        help="run the parts on a Ray cluster: that of RAY_ADDRESS, or else this machine",
    )
    prepare.add_argument(
        "--shard-bytes",
        type=whole_number(4096, 1 << 40),
        metavar="B",
        default=1 << 28,
        help="about how large a shard is (default: %(default)s)",
    )
    inspect = add_command(
        data,
        "inspect",
        "Verify the token stores of a configuration and show what is in them.",
        _data_inspect,
        "jaxformer data inspect configs/quickstart.yaml",
    )
    train = add_command(
        data,
        "train-tokenizer",
        "Train a byte-level BPE tokenizer on the sources of a configuration.",
        _data_train_tokenizer,
        "jaxformer data train-tokenizer configs/quickstart.yaml --vocab-size 4096 --out bpe.json",
    )
    train.add_argument("--vocab-size", type=int, required=True, metavar="N", help="at least 257")
    train.add_argument(
        "--out", type=local_path, required=True, help="a new .json file, or a folder for it"
    )
    for parser in (prepare, inspect, train):
        parser.add_argument("config", help="a configuration file")
        takes_overrides(parser)


def _data_prepare(arguments: argparse.Namespace) -> int:
    part, parts, merges = arguments.part, arguments.parts, arguments.merge
    if part is not None and (parts is None or part >= parts):
        raise UserError(
            f"--part is {part} and --parts is {parts}; give --parts N, and as --part 0 to N - 1"
        )
    if merges and part is not None:
        raise UserError("--merge is for when all parts have ended; give it without --part")
    if arguments.runner and (parts is None or part is not None or merges):
        raise UserError("--runner ray runs all parts and merges them; give it --parts N alone")
    place = [] if arguments.out is None else [f"data.store_dir={json.dumps(arguments.out)}"]
    config = jaxformer.load_config(arguments.config, [*arguments.overrides, *place])
    from jaxformer.data.commands import merge_parts, prepare, prepare_part

    if arguments.runner:
        from jaxformer.data.ray_runner import prepare_on_ray

        prepare_on_ray(config, parts, arguments.shard_bytes)
        return DONE
    if not merges and parts is None:
        prepare(config, arguments.shard_bytes)
        return DONE
    if not merges:
        for number in range(parts) if part is None else [part]:
            prepare_part(config, number, parts, arguments.shard_bytes)
    if merges or part is None:
        merge_parts(config, arguments.shard_bytes)
    return DONE


def _data_inspect(arguments: argparse.Namespace) -> int:
    config = jaxformer.load_config(arguments.config, arguments.overrides)
    from jaxformer.data.commands import inspect

    inspect(config)
    return DONE


def _data_train_tokenizer(arguments: argparse.Namespace) -> int:
    config = jaxformer.load_config(arguments.config, arguments.overrides)
    from jaxformer.data.commands import train_tokenizer

    train_tokenizer(config.data, arguments.out, arguments.vocab_size)
    return DONE
