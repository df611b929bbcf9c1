"""What a run shows while it trains: a live line on a terminal, plain lines elsewhere."""

import time
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jaxformer.memory import MEMORY_FIELDS
from jaxformer.terminal import in_bytes
from jaxformer.train.metrics import Row

LINE_SECONDS = 5.0  # between plain lines about training
USUAL = {  # in the rows of every run
    "step",
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens",
    "loss_tokens",
    "nonfinite",
    "tokens_per_second",
    "step_seconds",
    "mfu",
    *MEMORY_FIELDS,
}


class Display(Protocol):
    """Hears of every finished step, and gets the row of each step that is logged."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def say(self, text: str) -> None: ...

    def stepped(self, step: int) -> None: ...

    def logged(self, row: Row) -> None: ...


class LiveLine:
    """A progress bar with loss, tokens/s, MFU and the time left; `say` prints above it."""

    def __init__(self, total: int) -> None:
        self._console = Console(highlight=False)
        self._bar = Progress(
            TextColumn("step {task.completed:,}/{task.total:,}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=self._console,
            refresh_per_second=2,
        )
        self._task = self._bar.add_task("compiling", total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def stepped(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def logged(self, row: Row) -> None:
        self._bar.update(self._task, completed=row["step"], description=summary(row))


class PlainLines:
    """At most one line about training every few seconds, and one at the last step."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._next_line = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def say(self, text: str) -> None:
        print(text, flush=True)

    def stepped(self, step: int) -> None:
        return None

    def logged(self, row: Row) -> None:
        now = time.monotonic()
        if now >= self._next_line or row["step"] == self._total:
            self._next_line = now + LINE_SECONDS
            self.say(f"step {row['step']:,}/{self._total:,}  {summary(row)}")


def make_display(total: int) -> Display:
    """The display that suits standard output."""
    return LiveLine(total) if Console().is_terminal else PlainLines(total)


def summary(row: Row) -> str:
    """`loss 1.2345  12,345 tokens/s  MFU 45.6%`, with what else the objective reports, and the
    peak of the memory where devices tell it."""
    parts = (f"{name} {value:.4f}" for name, value in row.items() if name not in USUAL)
    losses = "  ".join([f"loss {row['loss']:.4f}", *parts])
    speed = f"{row['tokens_per_second']:,.0f} tokens/s  MFU {row['mfu']:.1%}"
    peak, limit = row.get("memory_peak_bytes"), row.get("memory_limit_bytes")
    memory = f"  memory {in_bytes(peak)}" if peak else ""
    of = f" of {in_bytes(limit)}" if memory and limit else ""
    return f"{losses}  {speed}{memory}{of}"
