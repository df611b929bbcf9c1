"""The `jaxformer` command: parse, call, exit code. Heavy imports wait for the command."""

import argparse
import sys
from collections.abc import Sequence

import jaxformer
from jaxformer.cli import arena, checkpoints, choices, data, interop, models, training
from jaxformer.cli.arguments import Parser
from jaxformer.cli.guard import guarded
from jaxformer.errors import did_you_mean


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done, 1 failed, 2 bad input, 75 stopped by a signal after saving (run the command again to
    resume), 130 interrupted, 141 the reader of the output is gone.
    """
    argv = list(sys.argv[1:] if argv is None else argv)

    def command() -> int:
        arguments = _parse(argv)
        return arguments.handler(arguments)

    return guarded(command, debug="--debug" in argv)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, with overrides collected from everywhere on the line.

    argparse itself takes `key=value` words only up to the first option.
    """
    arguments, rest = _parser().parse_known_args(argv)
    takes_overrides = hasattr(arguments, "overrides")
    for word in rest:
        if word.startswith("-") or not takes_overrides:
            nearest = did_you_mean(word.partition("=")[0], arguments.parser.flags)
            keys = (
                " A key of the configuration is given as key.path=value." if takes_overrides else ""
            )
            arguments.parser.error(f"unknown argument '{word}'.{nearest or keys}")
        arguments.overrides.append(word)
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="jaxformer",
        description="Train, evaluate, fine-tune and compare Transformers and their challengers.",
        example="jaxformer train configs/quickstart.yaml train.steps=200",
    )
    parser.add_argument("--version", action="version", version=f"jaxformer {jaxformer.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for group in (training, models, arena, checkpoints, interop, data, choices):
        group.add(commands)
    return parser
