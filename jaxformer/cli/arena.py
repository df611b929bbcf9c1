"""`jaxformer arena`: comparing architectures."""

import argparse
import os
from pathlib import Path
from typing import Any

from jaxformer.cli.arguments import add_command, takes_overrides, whole_number
from jaxformer.paths import local_path


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "arena",
        "Compare architectures of equal size, each at its best learning rate over several seeds.",
        _arena,
        "jaxformer arena configs/arena/quick.yaml --dry-run",
    )
    parser.add_argument("arena", help="an arena's YAML file, or with --all a folder of them")
    takes_overrides(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="only print the matched sizes and the expected time"
    )
    parser.add_argument(
        "--workers",
        type=whole_number(1),
        metavar="N",
        help="training runs at once, on a CPU (default: one per core)",
    )
    parser.add_argument("--all", action="store_true", help="run every arena in a folder")
    parser.add_argument(
        "--out",
        type=local_path,
        default=Path("findings.md"),
        help="with --all, the page of findings to write (default: findings.md)",
    )
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)


def _arena(arguments: argparse.Namespace) -> int:
    workers = arguments.workers or os.cpu_count() or 1
    if arguments.worker is not None:
        from jaxformer.arena.workers import keep_to_cores, stop_with

        stop_with(arguments.parent)
        keep_to_cores(arguments.worker, workers)
        from jaxformer.arena.commands import work

        return work(arguments.arena, arguments.overrides, arguments.worker, workers)
    from jaxformer.arena.commands import arena, arenas

    if arguments.all:
        return arenas(
            arguments.arena,
            arguments.overrides,
            arguments.out,
            dry_run=arguments.dry_run,
            workers=workers,
        )
    return arena(arguments.arena, arguments.overrides, dry_run=arguments.dry_run, workers=workers)
