"""`jaxformer list` and `schema`: the choices that a configuration has."""

import argparse
import sys
from pathlib import Path
from typing import Any

from jaxformer.cli.arguments import DONE, FAILED, add_command

TABLES = (
    "mixers",
    "residuals",
    "depths",
    "objectives",
    "configs",
    "optimizers",
    "tasks",
    "mixers-page",
    "depth-page",
    "structure-page",
    "configuration-page",
)


def add(commands: Any) -> None:
    _add_list(commands)
    _add_schema(commands)


def _add_list(commands: Any) -> None:
    parser = add_command(
        commands, "list", "List the available choices.", _list, "jaxformer list mixers"
    )
    parser.add_argument(
        "what",
        choices=TABLES,
        help="the pages are those in docs/",
    )


def _list(arguments: argparse.Namespace) -> int:
    from jaxformer import listing
    from jaxformer.config.page import configuration_page
    from jaxformer.listing import structure

    tables = {
        "mixers": listing.list_mixers,
        "residuals": structure.list_residuals,
        "depths": listing.list_depths,
        "objectives": listing.list_objectives,
        "configs": listing.list_configs,
        "optimizers": listing.list_optimizers,
        "tasks": listing.list_tasks,
        "mixers-page": listing.mixers_page,
        "depth-page": listing.depth_page,
        "structure-page": structure.structure_page,
        "configuration-page": configuration_page,
    }
    print(tables[arguments.what]().rstrip())
    return DONE


def _add_schema(commands: Any) -> None:
    parser = add_command(
        commands,
        "schema",
        "Print the JSON schema of configuration files, for completion in editors.",
        _schema,
        "jaxformer schema > configs/schema.json",
    )
    parser.add_argument(
        "--check", type=Path, metavar="FILE", help="exit with 1 unless FILE is up to date"
    )


def _schema(arguments: argparse.Namespace) -> int:
    from jaxformer.config.json_schema import is_current, json_schema

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
