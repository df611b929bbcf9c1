"""Large arrays in small contiguous pieces, whatever view they are."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import DTypeLike

BLOCK = 1 << 19  # numbers, so that a processor's cache holds them while they are transposed
WORKERS = 2


def contiguous_blocks(values: np.ndarray, dtype: DTypeLike) -> Iterator[np.ndarray]:
    """`values` as `dtype` in C order, piece after piece; some of them are made ahead."""
    if values.flags.c_contiguous and values.dtype == dtype:
        yield values
        return
    with ThreadPoolExecutor(WORKERS) as pool:
        ahead: deque[Future[np.ndarray]] = deque()
        for block in _blocks(values):
            ahead.append(pool.submit(_contiguous, block, dtype))
            if len(ahead) > WORKERS:
                yield ahead.popleft().result()
        for future in ahead:
            yield future.result()


def _blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    if values.ndim == 0:
        yield values
    elif values[0].size > BLOCK:
        for part in values:
            yield from _blocks(part)
    else:
        rows = max(1, BLOCK // values[0].size)
        for start in range(0, len(values), rows):
            yield values[start : start + rows]


def _contiguous(block: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """A view is first copied as it lies in memory, so that only the copy is read across."""
    if block.flags.c_contiguous:
        return block.astype(dtype, copy=False)
    return np.ascontiguousarray(block.astype(dtype, order="K"))
