"""`jaxformer data`: build and inspect token stores, and train tokenizers."""

import argparse
from typing import Any

import jaxformer
from jaxformer.cli.arguments import DONE, add_command, add_group, takes_overrides
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
    config = jaxformer.load_config(arguments.config, arguments.overrides)
    from jaxformer.data.commands import prepare

    prepare(config)
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
