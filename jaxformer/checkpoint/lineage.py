"""Which states are a run's own past, among those that its starts have left on disks.

A run that is started again goes on from some step, and what an earlier start had reached beyond it
is not its past: options may have changed since. `RUN/local.json` lists the starts.
"""

import hashlib
import json
import uuid
from pathlib import Path
from typing import NamedTuple

from jaxformer.parallel import processes
from jaxformer.paths import is_remote, replace_text
from jaxformer.reading import read_json

FILE = "local.json"


class Start(NamedTuple):
    """One start of the run: its name, and the step that it went on from."""

    name: str
    step: int


class Lineage:
    """The starts of a run, in their order. All processes make it together, and know the same."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / FILE
        self._run, starts = processes.told_by(0, self._read() if processes.is_first() else None)
        self._starts = [Start(*start) for start in starts]

    def _read(self) -> tuple[str, list[Start]]:
        if not self._file.exists():
            return uuid.uuid4().hex, []
        saved = read_json(self._file.read_bytes(), str(self._file))
        return saved["run"], [Start(**start) for start in saved["starts"]]

    def begin(self, step: int) -> None:
        """The run starts now, and goes on from `step`."""
        self._starts.append(Start(processes.told_by(0, uuid.uuid4().hex), step))
        starts = [start._asdict() for start in self._starts]
        text = json.dumps({"run": self._run, "starts": starts}, indent=1)
        processes.first_alone("lineage", lambda: replace_text(self._file, text))

    @property
    def name(self) -> str:
        """The run's name, which a copy of its directory does not share."""
        where = self._file.parent
        place = where if is_remote(where) else where.absolute()
        return hashlib.sha256(f"{self._run} {place}".encode()).hexdigest()[:16]

    @property
    def now(self) -> str:
        """The name of the newest start."""
        return self._starts[-1].name

    def has(self, start: str, step: int) -> bool:
        """Whether `step`, as that start reached it, is in the run's past."""
        names = [each.name for each in self._starts]
        if start not in names:
            return False
        later = self._starts[names.index(start) + 1 :]
        return all(step <= each.step for each in later)


def record_start(directory: Path, step: int) -> None:
    """A run that has left copies on local disks goes on from `step` without them."""
    if processes.told_by(0, (directory / FILE).exists()):
        Lineage(directory).begin(step)
