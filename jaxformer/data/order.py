"""The order in which the rows of a source are seen: shuffled anew every epoch, without end.

The shuffle of grain 0.2 takes from 20 µs (a million rows) to 20 ms (two rows) per row, and with
4^k + 1 rows it loses one and repeats another, so the permutation is made here.
"""

import sys
from functools import lru_cache
from typing import NamedTuple

import grain
import numpy as np

ROUNDS = 6
# With fewer bits, six rounds favour some permutations.
FEWEST_BITS = 6
ODD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: a product with it depends on every bit
WORD = (1 << 64) - 1


class Draw(NamedTuple):
    """The number of a row, and a number in [0, 2^64) from which its augmentation is drawn: it
    differs between seeds, sources and epochs, and between nothing else."""

    row: int
    key: int


class ShuffledRows(grain.MapDataset[Draw]):
    """The row of item i is in [first, first + rows): each once per epoch of `rows` items. The first
    `start` items are left out.

    The permutation of an epoch is a Feistel network over the smallest power of two that holds
    `rows`: (l, r) → (r, l ⊕ F(r)), which is one-to-one whatever F is. A result beyond `rows` goes
    through again until it is inside (cycle walking), less than twice on average. So an item costs
    microseconds and no memory, at any index, for any number of rows. (Black and Rogaway, "Ciphers
    with arbitrary finite domains", 2002.)

    `source` makes the orders of several sources with one seed differ.
    """

    def __init__(self, first: int, rows: int, seed: int, source: int, start: int = 0) -> None:
        super().__init__()
        self._first, self._rows, self._start = first, rows, start
        bits = max(FEWEST_BITS, (rows - 1).bit_length())
        self._right_bits = bits // 2
        self._left_bits = bits - self._right_bits
        # A batch made ahead may be in the next epoch already.
        self._keys = lru_cache(maxsize=4)(lambda epoch: _round_keys(seed, source, epoch))

    def __len__(self) -> int:
        return sys.maxsize - self._start

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return self.slice(index)
        epoch, place = divmod(self._start + index, self._rows)
        *keys, key = self._keys(epoch)
        place = self._permute(place, keys)
        while place >= self._rows:
            place = self._permute(place, keys)
        return Draw(self._first + place, key)

    def _permute(self, place: int, keys: list[int]) -> int:
        left_bits, right_bits = self._left_bits, self._right_bits
        left, right = place >> right_bits, place & ((1 << right_bits) - 1)
        for key in keys:
            mixed = ((right ^ key) * ODD) & WORD
            mixed = ((mixed ^ (mixed >> 32)) * ODD) & WORD
            left, right = right, left ^ (mixed >> (64 - left_bits))
            left_bits, right_bits = right_bits, left_bits
        return left << right_bits | right


class HeldRows(grain.MapDataset[Draw]):
    """The items at the places `held` of every batch of `batch_size` items of `order`."""

    def __init__(self, order: grain.MapDataset[Draw], batch_size: int, held: np.ndarray) -> None:
        super().__init__(order)
        self._batch_size, self._held = batch_size, held.tolist()

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._held)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return self.slice(index)
        batch, place = divmod(index, len(self._held))
        return self._parent[batch * self._batch_size + self._held[place]]


def _round_keys(seed: int, source: int, epoch: int) -> tuple[int, ...]:
    """The keys of the rounds, and after them that of the draws of the epoch."""
    state = np.random.SeedSequence([seed, source, epoch]).generate_state(ROUNDS + 1, np.uint64)
    return tuple(int(key) for key in state)
