"""`jaxformer checkpoint`: list, inspect, verify, compare and remove checkpoints."""

import argparse
from typing import Any

from jaxformer.cli.arguments import DONE, FAILED, Parser, add_command, add_group
from jaxformer.paths import locate_path


def add(commands: Any) -> None:
    checkpoint = add_group(
        commands,
        "checkpoint",
        "List, inspect, verify, compare and remove checkpoints.",
        "jaxformer checkpoint ls runs/quickstart",
    )
    ls = add_command(
        checkpoint,
        "ls",
        "List the checkpoints of a run.",
        _ls,
        "jaxformer checkpoint ls runs/quickstart --verify",
    )
    _takes_path(ls, "path", "PATH")
    ls.add_argument(
        "--verify", action="store_true", help="compare the hashes of files, not only their sizes"
    )
    inspect = add_command(
        checkpoint,
        "inspect",
        "Print the manifest of a checkpoint, and every array in it.",
        _inspect,
        "jaxformer checkpoint inspect runs/quickstart",
    )
    _takes_path(inspect, "path", "PATH")
    inspect.add_argument("--json", action="store_true", help="print the manifest as JSON")
    verify = add_command(
        checkpoint,
        "verify",
        "Hash every file and print those that differ from what was saved (exit code 1 if any do).",
        _verify,
        "jaxformer checkpoint verify runs/quickstart",
    )
    _takes_path(verify, "path", "PATH")
    diff = add_command(
        checkpoint,
        "diff",
        "Print how two checkpoints differ: configuration, trees, values.",
        _diff,
        "jaxformer checkpoint diff runs/quickstart/checkpoints/250 runs/quickstart",
    )
    _takes_path(diff, "a", "A")
    _takes_path(diff, "b", "B")
    rm = add_command(
        checkpoint,
        "rm",
        "Remove checkpoints of a run, except the last good one.",
        _rm,
        "jaxformer checkpoint rm runs/quickstart 250 500.damaged",
    )
    rm.add_argument("run", type=locate_path, metavar="RUN", help="a run directory")
    rm.add_argument("steps", nargs="+", metavar="STEP", help="a name that `ls` prints")
    rm.add_argument(
        "--force",
        action="store_true",
        help="remove even the last good one, and even while the run is training",
    )


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
