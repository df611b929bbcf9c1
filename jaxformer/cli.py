"""The `jaxformer` command: parse, call, exit code. Heavy imports wait for the command."""

import argparse
import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

import jaxformer
from jaxformer.paths import locate_path
from jaxformer.schema import UserError, did_you_mean

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done, 1 failed, 2 bad input, 75 stopped by a signal after saving (run it again to go on).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = _parse(argv)
        return arguments.handler(arguments)
    except UserError as error:
        if "--debug" in argv:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # argparse, after it printed help or the version
        return int(stop.code or DONE)


class _Parser(argparse.ArgumentParser):
    """Complains by UserError, with the nearest spelling."""

    def __init__(self, *, example: str = "", **options: Any) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=f"example:\n  {example}" if example else None,
            **options,
        )

    @property
    def flags(self) -> list[str]:
        return list(self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}\n{self.format_usage().strip()}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        allowed = list(action.choices or [value])
        if value not in allowed:
            text = f"'{value}' is unknown; allowed: {', '.join(allowed)}."
            raise argparse.ArgumentError(action, text + did_you_mean(value, allowed))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, with overrides collected from everywhere on the line.

    argparse itself takes `key=value` words only up to the first option.
    """
    arguments, rest = _parser().parse_known_args(argv)
    takes_overrides = hasattr(arguments, "overrides")
    for word in rest:
        if word.startswith("-") or not takes_overrides:
            nearest = did_you_mean(word.partition("=")[0], arguments.parser.flags)
            arguments.parser.error(f"unknown argument '{word}'.{nearest}")
        arguments.overrides.append(word)
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="jaxformer",
        description="Train, evaluate and compare language models.",
        example="jaxformer train configs/quickstart.yaml train.steps=200",
    )
    parser.add_argument("--version", action="version", version=f"jaxformer {jaxformer.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_train(commands)
    _add_plan(commands)
    _add_eval(commands)
    _add_generate(commands)
    _add_data(commands)
    _add_list(commands)
    _add_plot(commands)
    _add_schema(commands)
    return parser


def _command(commands: Any, name: str, summary: str, handler: Any, example: str) -> _Parser:
    parser = commands.add_parser(name, help=summary, description=summary, example=example)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(handler=handler, parser=parser)
    return parser


def _takes_overrides(parser: _Parser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key.path=value",
        help="put in place of what the configuration says",
    )


def _add_train(commands: Any) -> None:
    parser = _command(
        commands,
        "train",
        "Train a model; run it again to resume.",
        _train,
        "jaxformer train configs/quickstart.yaml model.d_model=128 run.dir=runs/small",
    )
    parser.add_argument("config", help="a configuration file")
    _takes_overrides(parser)
    _takes_processes(parser)


def _takes_processes(parser: _Parser) -> None:
    group = parser.add_argument_group(
        "several processes",
        "one on every host, or more; a TPU pod, Slurm, Kubernetes or Open MPI is detected",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--processes", type=int, metavar="N", help="how many; 1 detects nothing")
    group.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
    group.add_argument(
        "--peer-timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="without an answer from a process until all others end (30)",
    )


def _joined(arguments: argparse.Namespace) -> AbstractContextManager[None]:
    from jaxformer.parallel.processes import joined

    return joined(
        arguments.coordinator, arguments.processes, arguments.process, arguments.peer_timeout
    )


def _train(arguments: argparse.Namespace) -> int:
    config = jaxformer.load_config(arguments.config, arguments.overrides)
    with _joined(arguments):
        from jaxformer.train.loop import train

        return train(config)


def _add_plan(commands: Any) -> None:
    parser = _command(
        commands,
        "plan",
        "What a training step would take on a TPU slice, by the TPU compiler and without a TPU.",
        _plan,
        "jaxformer plan configs/models/llama3-8b.yaml --topology v5p-128 mesh.data=1 mesh.fsdp=64 "
        "train.batch_size=128",
    )
    parser.add_argument("config", help="a configuration file")
    _takes_overrides(parser)
    parser.add_argument(
        "--topology", required=True, metavar="NAME", help="such as v5p-128, v6e-256"
    )
    parser.add_argument("--slices", type=int, default=1, metavar="N")
    parser.add_argument("--search", action="store_true", help="try remat × batch × mesh")
    parser.add_argument(
        "--show-sharding", action="store_true", help="only list what a chip has of each parameter"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _plan(arguments: argparse.Namespace) -> int:
    config = jaxformer.load_config(arguments.config, arguments.overrides)
    from jaxformer.train.plan import plan, search, show_sharding

    if arguments.show_sharding:
        show_sharding(config, arguments.topology, arguments.slices)
        return 0
    run = search if arguments.search else plan
    return run(config, arguments.topology, arguments.slices, as_json=arguments.json)


def _add_eval(commands: Any) -> None:
    parser = _command(
        commands,
        "eval",
        "Loss, perplexity and bits per byte of a run or checkpoint.",
        _eval,
        "jaxformer eval runs/quickstart data.validation_source='text:books/*.txt' --json",
    )
    parser.add_argument("run", type=locate_path, help="a run directory, or one of its checkpoints")
    _takes_overrides(parser)
    _takes_processes(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _eval(arguments: argparse.Namespace) -> int:
    with _joined(arguments):
        from jaxformer.evaluate.perplexity import evaluate_run

        return evaluate_run(arguments.run, arguments.overrides, json=arguments.json)


def _add_generate(commands: Any) -> None:
    parser = _command(
        commands,
        "generate",
        "Continue prompts with a trained model.",
        _generate,
        "jaxformer generate runs/quickstart --prompt 'def ' --max-new-tokens 200 --temperature 0.8",
    )
    parser.add_argument("run", type=locate_path, help="a run directory, or one of its checkpoints")
    parser.add_argument(
        "--prompt",
        action="append",
        required=True,
        metavar="TEXT",
        help="repeat it for several prompts in one batch",
    )
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0 is greedy")
    parser.add_argument("--top-k", type=int, metavar="K", help="only the K likeliest tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="only the likeliest, P in sum")
    parser.add_argument(
        "--min-p", type=float, metavar="P", help="only those of at least P times the likeliest's"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--stats", action="store_true", help="print tokens per second")


def _generate(arguments: argparse.Namespace) -> int:
    from jaxformer.run import load

    run = load(arguments.run)
    run.generate(
        arguments.prompt,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        seed=arguments.seed,
        stream=True,
        stats=arguments.stats,
    )
    return DONE


def _add_data(commands: Any) -> None:
    data = commands.add_parser(
        "data",
        help="Token stores and tokenizers.",
        description="Token stores and tokenizers.",
        example="jaxformer data prepare configs/quickstart.yaml",
    ).add_subparsers(metavar="COMMAND", required=True)
    prepare = _command(
        data,
        "prepare",
        "Make the token stores that a configuration needs.",
        _data_prepare,
        "jaxformer data prepare configs/quickstart.yaml data.source='text:books/*.txt'",
    )
    inspect = _command(
        data,
        "inspect",
        "Verify the token stores of a configuration and show what is in them.",
        _data_inspect,
        "jaxformer data inspect configs/quickstart.yaml",
    )
    train = _command(
        data,
        "train-tokenizer",
        "Train a byte-level BPE tokenizer on the sources of a configuration.",
        _data_train_tokenizer,
        "jaxformer data train-tokenizer configs/quickstart.yaml --vocab-size 4096 --out bpe.json",
    )
    train.add_argument("--vocab-size", type=int, required=True, metavar="N")
    train.add_argument("--out", type=Path, required=True, help="a new .json file, or its folder")
    for parser in (prepare, inspect, train):
        parser.add_argument("config", help="a configuration file")
        _takes_overrides(parser)


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


def _add_list(commands: Any) -> None:
    parser = _command(
        commands, "list", "What there is to choose from.", _list, "jaxformer list mixers"
    )
    parser.add_argument("what", choices=["mixers", "mixers-page", "configs", "optimizers"])


def _list(arguments: argparse.Namespace) -> int:
    from jaxformer import listing

    tables = {
        "mixers": listing.list_mixers,
        "mixers-page": listing.mixers_page,
        "configs": listing.list_configs,
        "optimizers": listing.list_optimizers,
    }
    print(tables[arguments.what]().rstrip())
    return DONE


def _add_plot(commands: Any) -> None:
    parser = _command(
        commands,
        "plot",
        "Draw the loss curves of runs.",
        _plot,
        "jaxformer plot runs/quickstart --out loss.png",
    )
    parser.add_argument("runs", nargs="+", type=locate_path, metavar="RUN", help="a run directory")
    parser.add_argument("--out", type=Path, required=True, help="an image file: .png, .svg, .pdf")


def _plot(arguments: argparse.Namespace) -> int:
    from jaxformer.plot import plot_losses

    plot_losses(arguments.runs, arguments.out)
    print(f"wrote {arguments.out}")
    return DONE


def _add_schema(commands: Any) -> None:
    parser = _command(
        commands,
        "schema",
        "Print the JSON schema of configuration files, for editors.",
        _schema,
        "jaxformer schema > configs/schema.json",
    )
    parser.add_argument("--check", type=Path, metavar="FILE", help="fail unless FILE is current")


def _schema(arguments: argparse.Namespace) -> int:
    from jaxformer.json_schema import is_current, json_schema

    if arguments.check is None:
        print(json_schema(), end="")
        return DONE
    if is_current(arguments.check):
        return DONE
    print(
        f"{arguments.check} is not current; run: jaxformer schema > {arguments.check}",
        file=sys.stderr,
    )
    return FAILED
