"""What a tracker is, and what it is told about a run."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol

from jaxformer.evaluate.samples import Sample
from jaxformer.paths import is_remote, replace_text
from jaxformer.reading import read_json_object

PROJECT = "jaxformer"  # where the user's environment names no project

Values = Mapping[str, float]


class Position(NamedTuple):
    """The place of a row in metrics.jsonl: its step, and which of that step's rows it is."""

    step: int
    row: int


BEFORE_ALL = Position(-1, 0)


class Tracker(Protocol):
    """Something that shows metrics elsewhere. It may be slow, and it may fail."""

    holds: Position  # the last row that it was told by an earlier start of the run

    def write(self, at: Position, values: Values) -> None: ...

    def write_text(self, name: str, text: str, step: int) -> None: ...

    def write_pictures(self, name: str, pictures: Sequence[Sample], step: int) -> None: ...

    def close(self) -> None: ...


class Ids:
    """Under which identifier each tracker knows the run, kept in `RUN/trackers.json`.

    A run that begins at its first step is a new one to every tracker, even in a used directory.
    """

    def __init__(self, path: Path, *, resumes: bool) -> None:
        self._path, self._lock = path, Lock()
        has_some = resumes and path.exists()
        self._ids = read_json_object(path.read_bytes(), str(path)) if has_some else {}

    def get(self, tracker: str) -> str | None:
        return self._ids.get(tracker)

    def keep(self, tracker: str, identifier: str) -> None:
        """Written before the tracker is told its first row; trackers start at the same time."""
        with self._lock:
            self._ids[tracker] = identifier
            replace_text(self._path, json.dumps(self._ids, indent=2) + "\n")


@dataclass(frozen=True)
class TrackedRun:
    """A run, as trackers see it."""

    directory: Path
    name: str
    group: str | None
    configuration: dict[str, Any]
    resumed_step: int
    last_row: Position  # of metrics.jsonl, when the run began or was resumed
    ids: Ids
    say: Callable[[str], None]

    @property
    def folder(self) -> Path | None:
        """The run's directory as an absolute path; None if it is in a bucket."""
        return None if is_remote(self.directory) else self.directory.absolute()
