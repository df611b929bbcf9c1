"""`jaxformer checkpoint`: look at checkpoints, verify, compare and remove them."""

import argparse
from typing import Any

from jaxformer.cli.arguments import DONE, FAILED, Parser, add_command
from jaxformer.paths import locate_path


def add(commands: Any) -> None:
    checkpoint = commands.add_parser(
        "checkpoint",
        help="Look at checkpoints, verify, compare and remove them.",
        description="Look at checkpoints, verify, compare and remove them.",
        example="jaxformer checkpoint ls runs/quickstart",
    ).add_subparsers(metavar="COMMAND", required=True)
    ls = add_command(
        checkpoint,
        "ls",
        "A line for each step of a run.",
        _ls,
        "jaxformer checkpoint ls runs/quickstart --verify",
    )
    _takes_path(ls, "path", "PATH")
    ls.add_argument("--verify", action="store_true", help="hash the files, not only their sizes")
    inspect = add_command(
        checkpoint,
        "inspect",
        "What a checkpoint says of itself, and every array in it.",
        _inspect,
        "jaxformer checkpoint inspect runs/quickstart",
    )
    _takes_path(inspect, "path", "PATH")
    inspect.add_argument("--json", action="store_true", help="print the manifest")
    verify = add_command(
        checkpoint,
        "verify",
        "Hash every file, and print those that are not what was saved (exit code 1).",
        _verify,
        "jaxformer checkpoint verify runs/quickstart",
    )
    _takes_path(verify, "path", "PATH")
    diff = add_command(
        checkpoint,
        "diff",
        "What differs between two checkpoints: configuration, trees, values.",
        _diff,
        "jaxformer checkpoint diff runs/quickstart/checkpoints/250 runs/quickstart",
    )
    _takes_path(diff, "a", "A")
    _takes_path(diff, "b", "B")
    rm = add_command(
        checkpoint,
        "rm",
        "Remove steps of a run; not the last good one, nor beside a writer.",
        _rm,
        "jaxformer checkpoint rm runs/quickstart 250 500.damaged",
    )
    rm.add_argument("run", type=locate_path, metavar="RUN", help="a run directory")
    rm.add_argument("steps", nargs="+", metavar="STEP", help="a name that `ls` shows")
    rm.add_argument("--force", action="store_true", help="even the last good one, or while written")


def _takes_path(parser: Parser, name: str, shown: str) -> None:
    text = "a run directory, or one of its checkpoints"
    parser.add_argument(name, type=locate_path, metavar=shown, help=text)


def _ls(arguments: argparse.Namespace) -> int:
    from jaxformer.checkpoint import commands

    commands.ls(arguments.path, verify=arguments.verify)
    return DONE


def _inspect(arguments: argparse.Namespace) -> int:
    from jaxformer.checkpoint import commands

    commands.inspect(arguments.path, as_json=arguments.json)
    return DONE


def _verify(arguments: argparse.Namespace) -> int:
    from jaxformer.checkpoint import commands

    return DONE if commands.verify(arguments.path) else FAILED


def _diff(arguments: argparse.Namespace) -> int:
    from jaxformer.checkpoint.difference import diff

    diff(arguments.a, arguments.b)
    return DONE


def _rm(arguments: argparse.Namespace) -> int:
    from jaxformer.checkpoint import commands

    commands.rm(arguments.run, arguments.steps, force=arguments.force)
    return DONE
