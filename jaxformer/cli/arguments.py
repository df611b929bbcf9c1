"""How commands declare their arguments, and how they report mistakes in them."""

import argparse
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NoReturn

from jaxformer.errors import UserError, did_you_mean, shorten
from jaxformer.paths import locate_path
from jaxformer.schema.base import Schema

if TYPE_CHECKING:
    from jaxformer.generate.beam_search import BeamSearch

DONE, FAILED = 0, 1


class Parser(argparse.ArgumentParser):
    """Reports mistakes as `UserError`, with the nearest spelling."""

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


def add_command(commands: Any, name: str, summary: str, handler: Any, example: str) -> Parser:
    parser = commands.add_parser(name, help=summary, description=summary, example=example)
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    parser.set_defaults(handler=handler, parser=parser)
    return parser


def add_group(commands: Any, name: str, summary: str, example: str) -> Any:
    """Add `jaxformer NAME`, and return the object that its commands are added to."""
    group = commands.add_parser(name, help=summary, description=summary, example=example)
    return group.add_subparsers(metavar="COMMAND", required=True)


def takes_run(parser: Parser) -> None:
    parser.add_argument("run", type=locate_path, help="a run directory, or one of its checkpoints")


def takes_overrides(parser: Parser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key.path=value",
        help="override a key of the configuration; the value is YAML",
    )


def takes_draft(parser: Any) -> None:
    parser.add_argument(
        "--draft",
        type=text,
        metavar="DRAFT",
        help="generate with a draft: self:LAYERS, the run's own first layers; mtp, its own "
        "predictions (model.further); ngram, what followed the last tokens earlier in the text; or "
        "another run with the same tokenizer",
    )


def takes_beams(parser: Any) -> None:
    group = parser.add_argument_group("decoders with an encoder")
    group.add_argument(
        "--beams",
        type=whole_number(1),
        default=4,
        metavar="N",
        help="hypotheses that are followed; 1 is greedy decoding (default: 4)",
    )
    group.add_argument(
        "--length-penalty",
        type=float,
        default=0.6,
        metavar="A",
        help="more than 0 favours longer texts (default: 0.6)",
    )


def search_of(arguments: argparse.Namespace) -> "BeamSearch":
    """What `takes_beams` was given."""
    from jaxformer.generate.beam_search import BeamSearch

    return BeamSearch(arguments.beams, arguments.length_penalty)


def takes_processes(parser: Parser) -> None:
    group = parser.add_argument_group(
        "several processes",
        "Start the same command once per host. TPU pods, Slurm, Kubernetes and Open MPI are\n"
        "detected; elsewhere, give each process these options.",
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="the address on which process 0 listens"
    )
    group.add_argument(
        "--processes", type=int, metavar="N", help="the number of processes; 1 turns detection off"
    )
    group.add_argument(
        "--process", type=int, metavar="I", help="the number of this process, counted from 0"
    )
    group.add_argument(
        "--peer-timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how long a process may go without answering before the others exit (default: 30)",
    )


def whole_number(least: int, most: int = Schema.largest_integer) -> Callable[[str], int]:
    """The type of an argument that is a whole number from `least` to `most`."""

    def parse(word: str) -> int:
        try:
            number = int(word)
        except ValueError:
            raise argparse.ArgumentTypeError(f"invalid int value: {shorten(repr(word))}") from None
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(
                f"{shorten(word)} is out of range; allowed: {least:,} to {most:,}"
            )
        return number

    return parse


def text(word: str) -> str:
    """The type of an argument that is UTF-8 text, whatever encoding the terminal's settings name.

    Raises:
        ArgumentTypeError: its bytes are not UTF-8.
    """
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeError:
        raise argparse.ArgumentTypeError(f"{shorten(ascii(word))} is not text in UTF-8") from None


def joined_processes(arguments: argparse.Namespace) -> AbstractContextManager[None]:
    from jaxformer.parallel.processes import joined

    return joined(
        arguments.coordinator, arguments.processes, arguments.process, arguments.peer_timeout
    )
