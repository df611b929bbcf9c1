"""Saving by the clock, at a step on which all processes agree."""

import time
from collections.abc import Callable

from jaxformer.parallel import processes

GROWTH = 2  # a stretch without a meeting is at most so many times as long as the one before


class Timetable:
    """When `minutes` have passed since the newest save, by the clock of process 0.

    Nothing is exchanged at most steps. The processes meet at a step that all know: there process 0
    says whether to save now, or after how many steps to meet again, which is half of those that are
    left at the speed of the latest ones. So the meetings come closer as the save does, a few for
    each, and even if steps become slower, the save is not much later.
    """

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = None if minutes is None else 60 * minutes
        self._clock = clock
        self._meeting = 0  # the step of the next one

    def restart(self, step: int) -> None:
        """The run starts at `step`, or has been saved there."""
        self._stretch, self._met, self._meeting = 1, step, step + 1
        self._saved_at = self._met_at = self._clock()

    def due(self, step: int) -> bool:
        """Whether to save at `step`; asked at every step, by all processes."""
        if self._seconds is None or step != self._meeting:
            return False
        now = self._clock()
        step_seconds = (now - self._met_at) / (step - self._met)
        left = self._saved_at + self._seconds - now
        steps = int(min(left / step_seconds / 2, GROWTH * self._stretch)) if step_seconds else 1
        saves, steps = processes.told_by(0, [left < step_seconds / 2, max(1, steps)])
        self._stretch, self._met, self._met_at, self._meeting = steps, step, now, step + steps
        return saves
