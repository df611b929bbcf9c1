"""Stopping on SIGTERM and Ctrl-C, at once where nothing is lost and after a save elsewhere."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self, TypeVar

STOPPED = 75  # the exit code of a run that was stopped by a signal and has saved: restart me
SIGNALS = (signal.SIGTERM, signal.SIGINT)

T = TypeVar("T")


class Interrupted(Exception):
    """Raised where waiting was cut short by a signal."""


class StopSignal:
    """While entered, the first SIGTERM or SIGINT is noted and a second one kills the process.

    Signals reach the main thread alone; entered elsewhere, it notes nothing.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    @property
    def requested(self) -> bool:
        return self.name is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def check(self) -> None:
        """Raises Interrupted once a signal has come."""
        if self.requested:
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
            if self.requested and thread.is_alive():
                atexit.register(_leave_now)
                self.check()
        if failure:
            raise failure[0]
        return result[0]


def _leave_now() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(STOPPED)
