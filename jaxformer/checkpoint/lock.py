"""The lock of a run's directory: one writer per run.

`RUN/writer.json` says who writes (host, process id, user, since when) and has a number that grows
every BEAT_SECONDS while the writer lives. On a disk, the writer also holds a kernel lock on
`RUN/.lock`, which is freed when the process ends, however it ends. So a second writer

- is refused if the kernel lock is held, or the number is seen to grow;
- takes over at once if the kernel lock is free and the owner was a process of this host;
- takes over from another host, or in a bucket, once the number has not grown for STALE_SECONDS.

A writer that was wrongly taken for dead finds another's name there and stops.
"""

import contextlib
import fcntl
import getpass
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import NamedTuple, Self

from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.errors import RunFailed, UserError
from jaxformer.parallel import processes
from jaxformer.paths import is_remote, replace_text
from jaxformer.reading import read_json
from jaxformer.terminal import say

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
OWNER, KERNEL = "writer.json", ".lock"


class RunLocked(UserError):
    """Another process is the writer of the run."""


class Owner(NamedTuple):
    """Who writes into a run, as its `writer.json` says."""

    host: str
    pid: int
    user: str
    since: str
    beat: int

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}, since {self.since}"


class RunLock:
    """While entered, process 0 is the only writer of the directory, which it creates.

    Raises:
        RunLocked: another writer lives.
        UserError: the file system refuses.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._run, self._directory = directory, directory.path
        self._held: int | None = None  # a file descriptor, for as long as the lock is held
        self._over = threading.Event()
        self._owner: Owner | None = None
        self._taken_by: Owner | None = None

    def __enter__(self) -> Self:
        if processes.is_first():
            self._run.make()
            self._acquire()
            since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
            self._owner = Owner(socket.gethostname(), os.getpid(), _user(), since, 0)
            self._write(self._owner)
            self._heart = threading.Thread(target=self._beat, name="lock", daemon=True)
            self._heart.start()
            processes.before_leaving(self._free)
        return self

    def __exit__(self, *error: object) -> None:
        if self._owner is not None:
            self._free()
        if self._held is not None:
            os.close(self._held)

    def _free(self) -> None:
        self._over.set()
        self._heart.join(BEAT_SECONDS)  # a last beat must not bring the file back
        if self._taken_by is None:
            (self._directory / OWNER).unlink(missing_ok=True)

    def check(self) -> None:
        """Raises RunFailed once another writer has taken this one for dead."""
        if self._taken_by is not None:
            raise RunFailed(
                f"{self._directory} was taken over by {self._taken_by}: this process had not "
                f"written to it for {STALE_SECONDS:g} s; it stops, and writes nothing more"
            )

    def _acquire(self) -> None:
        self._held = _system_lock(self._directory)
        owner = read_owner(self._directory)
        if owner is None:
            return
        if self._held is None or owner.host != socket.gethostname():
            self._watch(owner)
        say(f"the lock of {self._directory} is taken over: {owner}, is gone")

    def _watch(self, owner: Owner) -> None:
        """Return when the owner has not been seen for long enough."""
        say(
            f"{self._directory} is locked by {owner}; it counts as gone when {OWNER} has not "
            f"changed for {STALE_SECONDS:g} s: watching"
        )
        end = time.monotonic() + STALE_SECONDS
        while time.monotonic() < end:
            time.sleep(BEAT_SECONDS / 5)
            now = read_owner(self._directory)
            if now is None:
                return
            if now != owner:
                if self._held is not None:
                    os.close(self._held)
                raise _refused(self._directory, f"its {OWNER} changes")

    def _beat(self) -> None:
        assert self._owner is not None
        while self._taken_by is None and not self._over.wait(BEAT_SECONDS):
            # An error of a disk or a bucket may be temporary; a save raises one that is not.
            with contextlib.suppress(Exception):
                now = read_owner(self._directory)
                if now is not None and now[:4] != self._owner[:4]:
                    self._taken_by = now
                else:
                    self._owner = self._owner._replace(beat=self._owner.beat + 1)
                    self._write(self._owner)

    def _write(self, owner: Owner) -> None:
        replace_text(self._directory / OWNER, json.dumps(owner._asdict()) + "\n")


def read_owner(directory: Path) -> Owner | None:
    """The writer of the directory, alive or killed; None once it has freed the lock."""
    try:
        return Owner(**read_json((directory / OWNER).read_bytes(), OWNER))
    except FileNotFoundError:
        return None
    except (UserError, TypeError):  # not ours, or cut short
        return Owner("an unknown host", 0, "an unknown user", "an unknown time", 0)


def check_no_writer(directory: Path) -> None:
    """Refuse to change what a run has saved while it may have a writer.

    Raises:
        UserError: a writer lives, or may live on another host.
    """
    kernel = _system_lock(directory)
    if kernel is not None:
        os.close(kernel)
    owner = read_owner(directory)
    if owner is not None and (kernel is None or owner.host != socket.gethostname()):
        raise _refused(directory, f"it may be alive; if not, remove {directory / OWNER}")


def _system_lock(directory: Path) -> int | None:
    """The kernel lock as an open file; None where it is unavailable, as in a bucket.

    Raises:
        UserError: another process has it.
    """
    if is_remote(directory):
        return None
    file = os.open(directory / KERNEL, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(file)
        raise _refused(directory, f"it holds {KERNEL}") from None
    except OSError:  # a file system without such locks
        os.close(file)
        return None
    return file


def _refused(directory: Path, why: str) -> RunLocked:
    return RunLocked(
        f"{directory} has a writer already: {read_owner(directory)} ({why}); wait for its end, "
        f"stop it, or give another run.dir"
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an id without a name, as containers have
        return str(os.getuid())
