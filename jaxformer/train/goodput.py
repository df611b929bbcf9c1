"""Where a run's time went."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

PARTS = ("start", "compile", "steps", "data", "evaluation", "saving", "profile")


class Goodput:
    """Seconds of the main thread by what it was waiting for; the rest of the loop is `steps`.

    Steps run on the device while the host waits for data or writes a log, so time counted as
    `data` is time in which the next batch was not there yet.
    """

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def spent_on(self, part: str) -> Iterator[None]:
        """Count what is inside as `part`; parts do not nest."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - began

    @property
    def paused(self) -> float:
        """Seconds that no step's duration should contain."""
        return sum(self._seconds[part] for part in ("evaluation", "saving", "profile"))

    def seconds(self) -> dict[str, float]:
        """Seconds by part up to now; they add up to the whole run."""
        total = time.perf_counter() - self._began
        known = {part: self._seconds[part] for part in PARTS if part != "steps"}
        return {**known, "steps": total - sum(known.values())}

    def table(self) -> str:
        """One line per part: seconds and share."""
        seconds = self.seconds()
        total = sum(seconds.values())
        rows = [
            f"  {part:<11}{seconds[part]:>9.1f} s {seconds[part] / total:>6.1%}" for part in PARTS
        ]
        return "\n".join([f"time {total:.1f} s, of which", *rows])
