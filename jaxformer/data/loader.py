"""Batches of rows: an endless training order, and what is validated on once.

The training batch is a pure function of (seed, step): every source is shuffled anew each epoch,
sources are mixed by weight in a fixed pattern, and rows are batched across epochs. A run that
resumes at step k asks for batch k and has lost nothing, on any number of hosts. A run in stages
counts batches from the beginning of each, and says from where in each source it is read.
"""

import math
from collections import deque
from collections.abc import Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, overload

import jax
import numpy as np

from jaxformer.batch import Batch
from jaxformer.data.overlap import warn_of_overlap
from jaxformer.data.stores import Part, Stores
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import UserError
from jaxformer.storage import Unreachable

if TYPE_CHECKING:
    import grain

# A process whose step waits for data may be as many steps behind the others.
STEPS_TO_STOP = 3


class Place(NamedTuple):
    """Where to read on in a source."""

    number: int  # of the source, which makes its order its own
    read: int  # its first rows in this order, which are left out


def train_batches(
    stores: Stores,
    *,
    batch_size: int,
    seed: int,
    held: np.ndarray | None = None,
    places: Sequence[Place] = (),
) -> "grain.MapDataset[Batch]":
    """The rows `held` (all, if not given) of the batch of each step, without end.

    The batch has `batch_size` rows and does not depend on which of them a process holds. Sources
    are read from their `places` on, or else from the beginning, numbered as they come.

    Weights become whole numbers relative to the smallest (at least 100), so each share has a
    relative error of one per cent at most.

    Raises:
        UserError: a source is wrong, empty or too small.
    """
    import grain

    from jaxformer.data.order import Draw, HeldRows, ShuffledRows

    training, weights = stores.training, list(stores.weights)
    mixture = Mixture(training)
    places = places or [Place(number, 0) for number in range(len(training))]
    orders = [
        ShuffledRows(first, len(rows), seed, *place)
        for first, rows, place in zip(mixture.firsts, training, places, strict=True)
    ]
    order = orders[0] if len(orders) == 1 else grain.MapDataset.mix(orders, weights)
    size = batch_size
    if held is not None and len(held) < batch_size:
        order, size = HeldRows(order, batch_size, held), len(held)

    def pack(draws: Sequence[Draw]) -> Batch:
        rows, keys = zip(*draws, strict=True)
        return mixture.pack(rows, np.asarray(keys, np.uint64))

    return order.batch(size, drop_remainder=True, batch_fn=pack)


def rows_per_source(weights: Sequence[float], rows: int) -> list[int]:
    """How many of the first `rows` of a mixture come from each source, in `train_batches`.

    Of k rows left for the sources i, i + 1, ... with whole weights w, ⌊k · Σ_{j>i} w / Σ_{j≥i} w⌋
    are for those after i.
    """
    if len(weights) < 2:
        return [rows] * len(weights)
    scale = 100 / min(weights)
    whole = [int(weight * scale) for weight in weights]
    counts = []
    for number, weight in enumerate(whole):
        left = sum(whole[number:])
        after = rows * (left - weight) // left
        counts.append(rows - after)
        rows = after
    return counts


def iterate(
    dataset: "grain.MapDataset[Batch]", start_step: int, prefetch: int, threads: int
) -> "grain.DatasetIterator[Batch]":
    """Batches from `start_step` on, `prefetch` of them made ahead by threads until `close()`."""
    import grain

    options = grain.ReadOptions(num_threads=min(prefetch, threads), prefetch_buffer_size=prefetch)
    iterator = iter(dataset.slice(slice(start_step, None)).to_iter_dataset(options))
    iterator.start_prefetch()
    return iterator


class BatchesInHand:
    """Batches of `source`, the next few of them in hand.

    If the data can no longer be reached, `lost` says so while there are still batches for the steps
    up to the one at which all processes stop.
    """

    def __init__(self, source: Generator[Batch]) -> None:
        self._source = source
        self._in_hand: deque[Batch] = deque()
        self.lost: Unreachable | None = None

    def __next__(self) -> Batch:
        self.fill()
        if self.lost is not None and not self._in_hand:
            raise self.lost
        return self._in_hand.popleft()

    def fill(self) -> None:
        """Take as many in hand as there are to be."""
        while self.lost is None and len(self._in_hand) <= STEPS_TO_STOP:
            try:
                self._in_hand.append(next(self._source))
            except Unreachable as error:
                self.lost = error
            except StopIteration:
                break

    def close(self) -> None:
        self._source.close()


class ValidationBatches(Sequence[Batch]):
    """The rows to validate on once, in order; the last ones are padding, 0 in all arrays.

    `loss_tokens` and `bytes_per_token` cover all of them: bits per byte are
    nats per loss token / (ln 2 · bytes_per_token).
    """

    def __init__(
        self,
        parts: Sequence[Part],
        tokenizer: Tokenizer,
        batch_size: int,
        held: np.ndarray,
    ) -> None:
        self._mixture = Mixture(parts)
        self._batch_size, self._held = batch_size, held
        self.loss_tokens = sum(part.loss_tokens() for part in parts)
        self.text_bytes = sum(part.text_bytes(tokenizer) for part in parts)
        self.bytes_per_token = self.text_bytes / self.loss_tokens if self.loss_tokens else math.nan

    def __len__(self) -> int:
        return -(-len(self._mixture) // self._batch_size)

    @overload
    def __getitem__(self, index: int) -> Batch: ...

    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...

    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        if not -len(self) <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        rows = index % len(self) * self._batch_size + self._held
        there = rows[rows < len(self._mixture)]
        batch = self._mixture.pack(there)
        missing = len(rows) - len(there)
        return jax.tree.map(partial(_with_empty_rows, missing=missing), batch)


def _with_empty_rows(array: np.ndarray, missing: int) -> np.ndarray:
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))


def validation_batches(
    stores: Stores,
    *,
    batch_size: int,
    held: np.ndarray | None = None,
) -> ValidationBatches:
    """The rows `held` (all, if not given) of every validation batch; no batches if the
    configuration holds out nothing.

    Raises:
        UserError: a source is wrong or empty, or what is held out has no token to predict.
    """
    warn_of_overlap(stores.data, stores.tokenizer)
    for part in stores.validation:
        if part.loss_tokens() == 0:
            raise UserError(
                f"data source '{part.manifest()['source']}': the validation part holds "
                f"{part.tokens} tokens, none to predict; raise data.validation_fraction "
                f"({stores.data.validation_fraction}), or set it to 0 for no validation"
            )
    held = np.arange(batch_size) if held is None else held
    return ValidationBatches(stores.validation, stores.tokenizer, batch_size, held)


class Mixture:
    """The rows of several stores under one numbering: part p has numbers from `firsts[p]` on."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self.firsts = [int(end) - len(part) for end, part in zip(self._ends, parts, strict=True)]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def pack(self, rows: Sequence[int] | np.ndarray, keys: np.ndarray | None = None) -> Batch:
        """The rows with these numbers, in this order.

        Args:
            keys: uint64 [rows], from which the augmentation of each row is drawn; None for none.
        """
        numbers = np.asarray(rows, np.int64)
        if len(self._parts) == 1:
            return self._parts[0].pack(numbers, keys)
        part_of = np.searchsorted(self._ends, numbers, side="right")
        pieces, places = [], []
        for number, part in enumerate(self._parts):
            place = np.flatnonzero(part_of == number)
            of_part = None if keys is None else keys[place]
            pieces.append(part.pack(numbers[place] - self.firsts[number], of_part))
            places.append(place)
        back = np.argsort(np.concatenate(places))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays)[back], *pieces)
