"""Reads blocks of shards, and checks every one: from a disk, or from a bucket through a cache."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from jaxformer.data.row_cache import RowCache
from jaxformer.data.shards import TOKENS, Shard, are_whole
from jaxformer.errors import UserError
from jaxformer.storage import Place

FILES_OPEN = 128
REQUESTS_AT_ONCE = 32
# What one process needs of a store that it reads alone is all of it: larger reads are as good.
SPAN_BYTES = 1 << 20


class Blocks(NamedTuple):
    """The blocks [first, last) of a shard."""

    shard: Shard
    first: int
    last: int


class BlockReader(Protocol):
    """Reads blocks as an array of `shards.block_type`.

    Raises:
        UserError: a shard is missing, cut short or altered; it has been read twice then.
    """

    def read(self, wanted: Sequence[Blocks]) -> list[np.ndarray]: ...


class BlocksOnDisk:
    """Blocks of shards in a folder."""

    def __init__(self, place: Place, block: np.dtype) -> None:
        self._place, self._block = place, block
        # A file that leaves the cache is closed once its last reader lets it go.
        self._open = lru_cache(FILES_OPEN)(lambda name: (place / name).path.open("rb", buffering=0))

    def read(self, wanted: Sequence[Blocks]) -> list[np.ndarray]:
        return [_checked(self._place, self._block, each, self._bytes) for each in wanted]

    def _bytes(self, blocks: Blocks) -> bytes:
        size = self._block.itemsize
        file = self._open(f"{blocks.shard.name}{TOKENS}")
        return os.pread(file.fileno(), (blocks.last - blocks.first) * size, blocks.first * size)


class BlocksInBucket:
    """Blocks of shards in a bucket; what has been read stays in a cache on this machine.

    Requests are made several at once, and what is being fetched is not asked for again. If this
    process reads the `whole` store, and the cache can hold it, a request gets all blocks of the
    span around it.
    """

    def __init__(
        self, place: Place, block: np.dtype, cache: RowCache, key: str, *, whole: bool
    ) -> None:
        self._place, self._block, self._cache, self._key = place, block, cache, key
        self._span = max(1, SPAN_BYTES // block.itemsize) if whole else 1
        self._pool = ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="shards")
        self._lock = threading.Lock()
        self._coming: dict[tuple[str, int, int], Future[np.ndarray]] = {}

    def read(self, wanted: Sequence[Blocks]) -> list[np.ndarray]:
        found = [self._kept(each) for each in wanted]
        coming = [
            self._fetch(self._around(each)) if blocks is None else None
            for blocks, each in zip(found, wanted, strict=True)
        ]
        arrays = []
        for blocks, future, each in zip(found, coming, wanted, strict=True):
            if future is not None:
                blocks = _cut(future.result(), self._around(each), each)
            assert blocks is not None
            arrays.append(blocks)
        return arrays

    def _around(self, blocks: Blocks) -> Blocks:
        """The spans that hold these blocks."""
        if self._span == 1:
            return blocks
        end = blocks.shard.files[TOKENS].bytes // self._block.itemsize
        first = blocks.first // self._span * self._span
        last = min(-(-blocks.last // self._span) * self._span, end)
        return Blocks(blocks.shard, first, last)

    def _kept(self, blocks: Blocks) -> np.ndarray | None:
        size = self._block.itemsize
        count = (blocks.last - blocks.first) * size
        data = self._cache.read(self._name(blocks.shard), blocks.first * size, count)
        if len(data) < count:
            return None
        array = np.frombuffer(data, self._block)
        return array if are_whole(array) else None

    def _fetch(self, blocks: Blocks) -> Future[np.ndarray]:
        key = (blocks.shard.name, blocks.first, blocks.last)
        with self._lock:
            if key not in self._coming:
                self._coming[key] = self._pool.submit(self._fetched, key, blocks)
            return self._coming[key]

    def _fetched(self, key: tuple[str, int, int], blocks: Blocks) -> np.ndarray:
        try:
            array = _checked(self._place, self._block, blocks, self._bytes)
            start = blocks.first * self._block.itemsize
            self._cache.write(self._name(blocks.shard), start, array.tobytes())
            return array
        finally:
            with self._lock:
                del self._coming[key]

    def _bytes(self, blocks: Blocks) -> bytes:
        size = self._block.itemsize
        file = self._place / f"{blocks.shard.name}{TOKENS}"
        return file.read(blocks.first * size, blocks.last * size)

    def _name(self, shard: Shard) -> tuple[str, str]:
        return self._key, f"{shard.name}{TOKENS}"


def _cut(array: np.ndarray, around: Blocks, wanted: Blocks) -> np.ndarray:
    return array[wanted.first - around.first : wanted.last - around.first]


def _checked(
    place: Place, block: np.dtype, blocks: Blocks, read: Callable[[Blocks], bytes]
) -> np.ndarray:
    """What `read` gives; if that is not what was written, it is read once more."""
    count = blocks.last - blocks.first
    for _ in range(2):
        try:
            data = read(blocks)
        except FileNotFoundError:
            fault = "is missing"
            continue
        if len(data) != count * block.itemsize:
            fault = "is cut short"
            continue
        array = np.frombuffer(data, block)
        if are_whole(array):
            return array
        fault = "has been altered"
    raise damaged_shard(place, blocks.shard, TOKENS, fault)


def damaged_shard(place: Place, shard: Shard, ending: str, fault: str) -> UserError:
    return UserError(
        f"token store {place}: {shard.name}{ending} {fault}. Prepare the store again, with the "
        f"command that made it: it keeps what is whole, and makes this one anew"
    )
