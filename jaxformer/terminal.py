"""What people read on a terminal: messages, progress, sizes and times."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jaxformer.parallel import processes

FIRST_LINE_SECONDS = 2.0
NEXT_LINE_SECONDS = 10.0


def say(message: str) -> None:
    """One line on standard error, where it does not mix with what a command prints."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with how much of `total` is done so far; process 0 shows it."""
    if not processes.is_first():
        yield lambda done: None
        return
    show = _bar if sys.stderr.isatty() else _lines
    with show(title, total) as report:
        yield report


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def _lines(title: str, total: int) -> Iterator[Callable[[int], None]]:
    started = time.monotonic()
    next_line = started + FIRST_LINE_SECONDS
    before: int | None = None  # done by an earlier run of the command

    def report(done: int) -> None:
        nonlocal next_line, before
        now = time.monotonic()
        before = done if before is None else before
        if now >= next_line:
            next_line = now + NEXT_LINE_SECONDS
            seconds = now - started
            left = ""
            if done > before:
                left = f", about {seconds * (total - done) / (done - before):.0f} s left"
            say(f"{title}: {done / max(total, 1):.0%} after {seconds:.0f} s{left}")

    yield report


def in_bytes(count: float) -> str:
    """A size as people read it: 134 KiB, 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit in ("B", "KiB") else f"{count:.1f} {unit}"


def in_time(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
