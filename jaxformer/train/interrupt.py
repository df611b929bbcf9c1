"""Stopping on SIGTERM and Ctrl-C, at once where nothing is lost and after a save elsewhere."""

import atexit
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self, TypeVar

from jaxformer.parallel.processes import common_stop, leave

STOPPED = 75  # the exit code of a run that was stopped by a signal and has saved: restart me
SIGNALS = (signal.SIGTERM, signal.SIGINT)

T = TypeVar("T")


class Interrupted(Exception):
    """Raised where waiting was cut short by a signal."""


class StopSignal:
    """While entered, the first SIGTERM or SIGINT is noted and a second one kills the process.

    Only the main thread gets signals; entered in another thread, it notes nothing. If one of
    several processes gets the signal, all stop at the same place.
    """

    def __init__(self) -> None:
        self._stop = common_stop()
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    @property
    def name(self) -> str | None:
        """The name of the signal that came."""
        return self._stop.asked

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def is_shared(self) -> bool:
        """Whether several processes stop together."""
        return not self._stop.is_alone

    def ask(self, name: str) -> None:
        """Stop as for a signal, for a reason of this program's."""
        self._stop.ask(name)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._stop.ask(signal.Signals(number).name)
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def due(self, step: int) -> bool:
        """Whether to stop before the next step; asked by all processes in the same order."""
        return self._stop.due(step)

    def check(self) -> None:
        """Like `due`, but raises Interrupted; for work between steps."""
        if self._stop.due():
            raise Interrupted(self.name)

    def wait_for(self, work: Callable[[], T]) -> T:
        """The result of `work`, done in a thread so that a signal ends the wait for it.

        For a compilation, which nothing can interrupt: what is left of it is dropped with the
        process, whose exit then does not wait for the thread.

        Raises:
            Interrupted: a signal came first.
        """
        result: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                result.append(work())
            except BaseException as error:  # handed to the thread that waits, below
                failure.append(error)

        thread = threading.Thread(target=run, name="compile", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
            if self._stop.due_next and thread.is_alive():
                atexit.register(leave, STOPPED)
                raise Interrupted(self.name)
        if failure:
            raise failure[0]
        self.check()
        return result[0]
