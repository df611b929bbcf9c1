"""A tracker follows metrics.jsonl: it is told live what is written there, and no row twice.

Trackers cannot take back what they were told, but a run that was killed resumes from its newest
checkpoint, and writes the rows since then again. So each tracker says which row it holds already
(`Tracker.holds`, read from what it stores itself, since a note of ours would be wrong after a
kill). At the start it is told the rows of metrics.jsonl after that one, which also fills in what it
missed when it failed or was not yet configured; rows up to it are skipped when they come again.
They are the same rows, except for their timing fields: of those, a tracker that cannot delete has
the first measurement, and metrics.jsonl the last. If the steps since the checkpoint are repeated
with accepted changes, such a tracker keeps the rows from before. What can be deleted is: the
offline files of W&B and the rows of Trackio are written anew, and TensorBoard drops its later rows.

All of this happens in a thread: a tracker that hangs or fails never stops a run.
"""

import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from jaxformer.evaluate.samples import Sample
from jaxformer.terminal import say
from jaxformer.train.metrics import Row
from jaxformer.train.trackers.base import BEFORE_ALL, Position, Tracker, Values

LONGEST_QUEUE = 10_000  # rows
CLOSE_SECONDS = 15.0  # machines that are taken away leave 30 s to stop in
CATCHES_UP = "it is told the rest when the run resumes"


class Text(NamedTuple):
    name: str
    text: str
    step: int


class Pictures(NamedTuple):
    name: str
    pictures: Sequence[Sample]
    step: int


class Follower:
    """Tells one tracker, in a thread, the rows in `past` and all that are written from here on.

    It warns once if the tracker fails, falls LONGEST_QUEUE rows behind, or is not done in time at
    the end of the run, and leaves it alone from then on.
    """

    def __init__(self, name: str, start: Callable[[], Tracker], past: Iterable[Row] = ()) -> None:
        self._name, self._start, self._past = name, start, past
        self._queue: queue.Queue[Row | Text | Pictures | None] = queue.Queue(LONGEST_QUEUE)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=name, daemon=True)
        self._thread.start()

    def write(self, row: Row) -> None:
        self._put(row)

    def write_text(self, name: str, text: str, step: int) -> None:
        self._put(Text(name, text, step))

    def write_pictures(self, name: str, pictures: Sequence[Sample], step: int) -> None:
        self._put(Pictures(name, pictures, step))

    def end(self) -> None:
        """There is nothing more to tell."""
        self._put(None)

    def wait(self, seconds: float) -> None:
        """Wait until the tracker has everything, but no longer than this."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._stop(f"is not done {CLOSE_SECONDS:g} s after the end; {CATCHES_UP}")

    def _put(self, item: Row | Text | Pictures | None) -> None:
        if self._over.is_set():
            return
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._stop(f"is {LONGEST_QUEUE:,} rows behind and is off from here on; {CATCHES_UP}")

    def _follow(self) -> None:
        try:
            self._tell(self._start())
        except Exception as error:  # whatever it is, the run is worth more
            self._stop(f"failed and is off from here on: {without_secrets(str(error))}")

    def _tell(self, tracker: Tracker) -> None:
        at = BEFORE_ALL
        for row in self._past:
            at = _tell_row(tracker, at, row)
        while not self._over.is_set():
            match self._queue.get():
                case None:
                    return tracker.close()
                case Text(name, text, step):
                    tracker.write_text(name, text, step)
                case Pictures(name, pictures, step):
                    tracker.write_pictures(name, pictures, step)
                case row:
                    at = _tell_row(tracker, at, row)
        return None

    def _stop(self, reason: str) -> None:
        if not self._over.is_set():
            self._over.set()
            say(f"warning: {self._name} {reason}")


def close_all(followers: Sequence[Follower]) -> None:
    """Wait until all trackers have everything, but no longer than CLOSE_SECONDS in all."""
    deadline = time.monotonic() + CLOSE_SECONDS
    for follower in followers:
        follower.end()
    for follower in followers:
        follower.wait(max(0.0, deadline - time.monotonic()))


def _tell_row(tracker: Tracker, before: Position, row: Row) -> Position:
    """Tell the tracker a row, unless it holds it; the row's position, given that `before` it."""
    at = next_position(before, row)
    if at > tracker.holds and (values := values_of(row)):
        tracker.write(at, values)
    return at


def next_position(before: Position, row: Row) -> Position:
    step = row["step"]
    assert isinstance(step, int)
    return Position(step, before.row + 1 if step == before.step else 1)


def values_of(row: Row) -> Values:
    """The finite values of a row: those of training under `train/`, of a layer under `layer_3/`."""
    group = "train"
    if "layer" in row:
        group = "outside_layers" if row["layer"] is None else f"layer_{row['layer']}"
    return {
        key if "/" in key else f"{group}/{key}": value
        for key, value in row.items()
        if key not in ("step", "layer") and value is not None and math.isfinite(value)
    }


def without_secrets(text: str) -> str:
    """`text` without the secrets of the environment, and without passwords in addresses."""
    for name, value in os.environ.items():
        if value and re.search("KEY|TOKEN|SECRET|PASSWORD", name):
            text = text.replace(value, f"${name}")
    return re.sub(r"://[^/@\s]+@", "://", text)
