"""Several processes watch each other: one that is missing or stuck is named, and the others end.

Everything goes through the key-value store of jax's coordination service, which process 0 hosts,
under `jaxformer/watch/`:

    beats/I    "NUMBER STEP POINT", written every second by process I
    words/...  what all must hear: `end`, why the run ends here, and `stop`, a signal's name
    points/I   how far process I had come when it heard `stop`
"""

import contextlib
import ctypes
import json
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxformer.errors import RunFailed, UserError

STORE = "jaxformer/watch"
BEAT_SECONDS = 1.0
LINGER_SECONDS = 5 * BEAT_SECONDS  # process 0 stays this long, so that all can read the last word
STUCK = 10  # time-outs without a step, while others wait for it, until a process counts as stuck

FAILED, BAD_INPUT = 1, 2


class Stop:
    """Where all processes stop after one of them was asked to.

    Every process calls `due` at the same places in the same order: the points. Once it hears the
    word, each one holds still and its watch tells how many points it has passed. All stop at the
    point after the furthest, which nobody has passed and everybody will reach.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self.asked: str | None = None  # the name of the signal
        self.step, self.points = 0, 0
        self.is_alone, self._last_point = alone, math.inf
        self._may_pass = threading.Lock()

    def ask(self, name: str) -> None:
        """For a signal handler: takes no lock."""
        self.asked = name
        if self.is_alone:
            self._last_point = 0

    def due(self, step: int | None = None) -> bool:
        """Pass a point, and tell whether it is the one to stop at."""
        with self._may_pass:
            self.points += 1
            self.step = self.step if step is None else step
            return self.points >= self._last_point

    @property
    def due_next(self) -> bool:
        """Whether the next point is the one to stop at."""
        return self.points + 1 >= self._last_point

    def hold(self) -> None:
        """Let no point be passed from now on."""
        self._may_pass.acquire()

    def decide(self, furthest: int) -> None:
        """Release the hold, once all have held; the furthest has passed `furthest` points."""
        self._last_point = furthest + 1
        self._may_pass.release()


class Beat(NamedTuple):
    number: int
    step: int
    points: int


class RollCall:
    """Process 0's view of the others. It counts looks, not seconds: while process 0 itself is
    stopped, nobody is late."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._last: dict[int, Beat] = {}
        self._silent: dict[int, int] = {}  # looks without a new beat
        self._still: dict[int, int] = {}  # looks without a new point, behind others

    def look(self, beats: Mapping[int, Beat]) -> tuple[int, str] | None:
        """Called every BEAT_SECONDS: the process that is missing or stuck, and what is known."""
        furthest = max(beat.points for beat in beats.values())
        for process, beat in beats.items():
            last = self._last.get(process, Beat(-1, 0, 0))
            still = 0 < last.points == beat.points < furthest  # 0: may be compiling
            self._silent[process] = self._silent.get(process, 0) + 1 if last == beat else 0
            self._still[process] = self._still.get(process, 0) + 1 if still else 0
            seen = f"last seen at step {beat.step}"
            if self._silent[process] * BEAT_SECONDS >= self._timeout:
                return process, f"has not answered for {self._timeout:g} s, {seen}"
            if self._still[process] * BEAT_SECONDS >= STUCK * self._timeout:
                return process, f"is stuck: no step for {STUCK * self._timeout:g} s, {seen}"
        self._last = dict(beats)
        return None


class Watch:
    """One process's part: it beats, hears the words, and ends this process when the run ends.

    Args:
        client: of jax's coordination service.
        hosts: the name of every process's machine.
        timeout: seconds without an answer after which a process counts as missing.
    """

    def __init__(
        self, client: Any, index: int, hosts: list[str], coordinator: str, timeout: float
    ) -> None:
        self.client, self.index, self.count = client, index, len(hosts)
        self.stop = Stop(alone=False)
        self.before_leaving: list[Callable[[], None]] = []
        self._hosts, self._coordinator, self._timeout = hosts, coordinator, timeout
        self._roll_call = RollCall(timeout)
        self._number, self._unanswered = 0, 0
        self._holds = self._decided = False
        self._over, self._named = threading.Event(), threading.Event()
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)  # kept alive here

    def start(self) -> None:
        loops: list[Callable[[], None]] = [self._beat]
        if self.index:
            loops.append(self._count_unanswered)
            # jax aborts a process as soon as the coordinator is gone, and its message names nobody.
            # It has no working callback for this, and Python's signal handlers come too late.
            ctypes.CDLL(None).signal(signal.SIGABRT, self._on_abort)
        for loop in loops:
            threading.Thread(target=self._every_second, args=[loop], daemon=True).start()

    def end(self) -> None:
        """Stop watching."""
        self._over.set()
        if self.index:
            ctypes.CDLL(None).signal(signal.SIGABRT, None)

    def fail(self, error: BaseException) -> int:
        """Tell the others that this process fails; → its exit code.

        An error that is not the user's mistake may be the consequence of another process's end:
        then the watch names that process first, within the time-out.
        """
        known = isinstance(error, UserError | RunFailed | KeyboardInterrupt | SystemExit)
        if not known and self._named.wait(self._timeout + LINGER_SECONDS):
            threading.Event().wait()  # for the watch, which ends this process
        self.end()
        code = BAD_INPUT if isinstance(error, UserError) else FAILED
        told = isinstance(error, UserError | RunFailed)
        what = f"{error}" if told else f"{type(error).__name__}: {error}"
        self._tell_end(self.index, f"failed: {what}", code)
        return code

    def name(self, process: int) -> str:
        return f"process {process} ({self._hosts[process]})"

    def _every_second(self, loop: Callable[[], None]) -> None:
        while not self._over.wait(BEAT_SECONDS):
            loop()

    def _beat(self) -> None:
        try:
            self._number += 1
            beat = f"{self._number} {self.stop.step} {self.stop.points}"
            self._write(f"beats/{self.index}", beat)
            words = self._read("words")
            beats = self._beats() if self.index == 0 else {}
            self._agree_on_stop(words.get("stop"))
        except (RuntimeError, ValueError):  # no answer: counted below
            return
        self._unanswered = 0
        if "end" in words:
            text, code = json.loads(words["end"])
            self._leave(text, code)
        if self.index == 0 and (found := self._roll_call.look(beats)):
            self._named.set()
            self._leave(self._tell_end(*found, FAILED), FAILED)

    def _agree_on_stop(self, word: str | None) -> None:
        if word is None and self.stop.asked is not None:
            self._write("words/stop", self.stop.asked)
        elif word is not None and not self._decided:
            if not self._holds:
                self.stop.asked, self._holds = word, True
                self.stop.hold()
            self._write(f"points/{self.index}", str(self.stop.points))
            points = self._read("points")
            if len(points) == self.count:
                self._decided = True
                self.stop.decide(max(map(int, points.values())))

    def _beats(self) -> dict[int, Beat]:
        read = self._read("beats")
        texts = (read.get(str(process), "0 0 0") for process in range(self.count))
        return {process: Beat(*map(int, text.split())) for process, text in enumerate(texts)}

    def _read(self, folder: str) -> dict[str, str]:
        found = self.client.key_value_dir_get(f"{STORE}/{folder}/")
        return {key.rpartition("/")[2]: value for key, value in found}

    def _write(self, key: str, value: str, *, first: bool = False) -> None:
        self.client.key_value_set(f"{STORE}/{key}", value, allow_overwrite=not first)

    def _count_unanswered(self) -> None:
        self._unanswered += 1
        if self._unanswered * BEAT_SECONDS > self._timeout:
            seen = f"has not answered for {self._timeout:g} s, last seen at step {self.stop.step}"
            self._leave(f"{self.name(0)} {seen}", FAILED)

    def _tell_end(self, process: int, what: str, code: int) -> str:
        text = f"{self.name(process)} {what}"
        # The write fails if another process was first, or nobody is left to hear it.
        with contextlib.suppress(RuntimeError, ValueError):
            self._write("words/end", json.dumps([text, code]), first=True)
        if self.index == 0:
            time.sleep(LINGER_SECONDS)
        return text

    def _aborted(self, number: int) -> None:
        host, _, port = self._coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError:
            self._leave(f"{self.name(0)} is gone, last seen at step {self.stop.step}", FAILED)

    def _leave(self, text: str, code: int) -> None:
        if self._over.is_set():
            return
        again = "; run the same commands again to resume from the newest checkpoint"
        line = f"error: {text}{again if code == FAILED else ''}\n"
        with contextlib.suppress(OSError):  # nobody reads it any more
            sys.stdout.flush()
        with contextlib.suppress(OSError):
            os.write(sys.stderr.fileno(), line.encode())
        last = threading.Thread(target=self._do_last, daemon=True)
        last.start()
        last.join(LINGER_SECONDS)  # a bucket may not answer
        os._exit(code)

    def _do_last(self) -> None:
        for action in self.before_leaving:
            with contextlib.suppress(Exception):
                action()
