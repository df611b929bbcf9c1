"""Keeps on a local disk what has been read of shards in buckets, up to a stated size."""

import contextlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from jaxformer.terminal import say

SECTOR = 512  # bytes that st_blocks counts
LEFT_AFTER_REMOVAL = 0.8  # of the limit
MARK = ".copies"  # a file in each folder of copies; others are left alone


class RowCache:
    """Sparse copies of files: what was written at a place is read there, all else is zeros.

    A reader must be able to tell that what it reads was written, by a checksum: another process may
    remove a copy at any time, and a kill leaves part of one. Beyond `limit` bytes of disk, the
    copies that were written to longest ago are removed, whole. If the disk is full, nothing more is
    kept.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self.limit = folder, limit
        self._lock = threading.Lock()
        self._is_off = limit == 0
        self._unseen = 0  # bytes written since the folder was last measured
        self._room = 0
        if not self._is_off:
            self._make_room()

    def read(self, name: Sequence[str], start: int, size: int) -> bytes:
        """The bytes [start, start + size) of a copy, as far as there are any."""
        if self._is_off:
            return b""
        try:
            file = os.open(self._folder.joinpath(*name), os.O_RDONLY)
        except OSError:
            return b""
        try:
            return os.pread(file, size, start)
        finally:
            os.close(file)

    def write(self, name: Sequence[str], start: int, data: bytes) -> None:
        """Keep bytes of a file; its other bytes are as they were."""
        if self._is_off:
            return
        path = self._folder.joinpath(*name)
        try:
            if not path.parent.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_name(MARK).touch()
            file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(file, data, start)
            finally:
                os.close(file)
        except OSError as error:
            self._turn_off(error)
            return
        with self._lock:
            self._unseen += len(data)
            if self._unseen > self._room:
                self._make_room()

    def _turn_off(self, error: OSError) -> None:
        with self._lock:
            was_off, self._is_off = self._is_off, True
        if not was_off:
            say(
                f"the cache of rows in {self._folder} is off from here on ({error.strerror}): rows "
                f"are read from the bucket each time; make room, or lower data.cache_bytes"
            )

    def _make_room(self) -> None:
        """Measure the folder, and remove the oldest copies if it is too large."""
        copies = []
        for path in self._folder.glob("*/*"):
            if not path.with_name(MARK).exists() or path.name == MARK:
                continue  # not ours
            with contextlib.suppress(FileNotFoundError):  # removed by another process
                state = path.stat()
                copies.append((state.st_mtime_ns, state.st_blocks * SECTOR, path))
        held = sum(size for _, size, _ in copies)
        if held > self.limit:
            for _, size, path in sorted(copies):
                if held <= LEFT_AFTER_REMOVAL * self.limit:
                    break
                path.unlink(missing_ok=True)
                held -= size
        # A few bytes may take a whole page of the disk: half of the room, then measure again.
        self._unseen, self._room = 0, max(self.limit - held, 0) // 2
