"""Rows of pairs: what an encoder reads and what a decoder writes, several pairs in a row.

A row has room for `source_length` tokens of sources and `length` of targets. Pairs are put into
rows in the order of their store, each into the first of the ROWS_OPEN newest rows that has room for
both sides. So the rows of a store are the same in every run, epoch and process.

In a row, pairs are numbered from 1, and positions restart at 0 with each side of a pair. Of a
target t_1 ... t_n and the end of text, all tokens are in the loss; the decoder reads the start,
then t_1 ... t_n.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from jaxformer.batch import Batch, Pair, Source
from jaxformer.config import DataConfig
from jaxformer.data.shards import END, LEARNT, TEXT_BYTES
from jaxformer.data.store import TokenStore
from jaxformer.data.tokenizers import Tokenizer, start_id
from jaxformer.errors import UserError
from jaxformer.terminal import say

ROWS_OPEN = 16  # of 13,000 sentences, four times as many leave 0.6% less padding


class Bounds(NamedTuple):
    """Where pairs of a store begin, where their targets begin, where both end, and the UTF-8 bytes
    of the targets: int64 [pairs] each."""

    begins: np.ndarray
    middles: np.ndarray
    ends: np.ndarray
    target_bytes: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """How many tokens sources and targets have, int64 [pairs, 2]."""
        return np.stack([self.middles - self.begins, self.ends - self.middles], axis=1)

    def of(self, pairs: np.ndarray) -> "Bounds":
        """The bounds of some pairs."""
        return Bounds(*(array[pairs] for array in self))


@dataclass(frozen=True, eq=False)
class PairRows:
    """Row r has the pairs from `firsts[r]` to `firsts[r + 1]`, whose `bounds` are in this order."""

    store: TokenStore
    bounds: Bounds = field(repr=False)
    firsts: np.ndarray = field(repr=False)  # int64 [rows + 1]
    source_length: int
    length: int
    start: int  # the token that the decoder reads before a target

    @property
    def tokens(self) -> int:
        return len(self) * self.length

    @property
    def words(self) -> str:
        shares = self.bounds.sizes.sum(axis=0) / len(self) / [self.source_length, self.length]
        of_sources, of_targets = 1 - shares
        return (
            f"{len(self.bounds.ends):,} pairs in {len(self):,} rows (padding: {of_sources:.1%} of "
            f"sources, {of_targets:.1%} of targets)"
        )

    def manifest(self) -> dict[str, Any]:
        """What identifies the rows: the same texts and tokens, wherever they are kept."""
        manifest = self.store.manifest
        own = {"source_length": self.source_length, "start": self.start}
        return {"source": manifest.source, "sha256": manifest.sha256, **own}

    def text_bytes(self, tokenizer: Tokenizer) -> int:
        return int(self.bounds.target_bytes.sum())

    def __len__(self) -> int:
        return len(self.firsts) - 1

    def pack(self, rows: np.ndarray, keys: np.ndarray | None = None) -> Batch:
        """The rows with these numbers; nothing about them is drawn from `keys`.

        Raises:
            UserError: a shard is missing, cut short or altered.
        """
        rows = np.asarray(rows, np.int64)
        firsts, counts = self.firsts[rows], np.diff(self.firsts)[rows]
        in_row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        begins, middles, ends, _ = self.bounds.of(np.repeat(firsts, counts) + in_row)
        whole = [each.tokens for each in self.store.read_all(begins.tolist(), ends.tolist())]
        sides = [np.split(ids, [cut]) for ids, cut in zip(whole, middles - begins, strict=True)]
        source = _laid((read for read, _ in sides), counts, self.source_length)
        target = _laid((written for _, written in sides), counts, self.length)
        targets, positions, segment_ids = target
        is_real = segment_ids != 0
        before = np.where(positions == 0, self.start, np.roll(targets, 1, axis=1))
        tokens = np.where(is_real, before, 0).astype(np.int32)
        return Batch(Pair(tokens, source), targets, positions, segment_ids, is_real)

    def loss_tokens(self) -> int:
        return int(self.bounds.sizes[:, 1].sum())


def _laid(pieces: Iterable[np.ndarray], counts: Sequence[int], length: int) -> Source:
    """Rows of `counts[r]` pieces each, one after another, and padding behind them."""
    laid = Source(*(np.zeros((len(counts), length), np.int32) for _ in Source._fields))
    pieces = iter(pieces)
    for row, count in enumerate(counts):
        end = 0
        for number, tokens in enumerate(islice(pieces, count), start=1):
            place = row, slice(end, end + len(tokens))
            laid.inputs[place], laid.segment_ids[place] = tokens, number
            laid.positions[place] = np.arange(len(tokens))
            end += len(tokens)
    return laid


def pair_rows(
    store: TokenStore, chosen: np.ndarray, data: DataConfig, tokenizer: Tokenizer
) -> PairRows:
    """The rows of those of a store's pairs that are `chosen`, int64 [pairs].

    Raises:
        UserError: some are longer than a row and `data.pairs.too_long` is error, or all are; or
            `data.pairs.start` is no id.
    """
    bounds = _within(_bounds_of(store).of(chosen), chosen, store.manifest.source, data)
    most = (data.source_length, data.sequence_length)
    row_of = rows_of(bounds.sizes, most)
    order = np.argsort(row_of, kind="stable")
    firsts = np.concatenate([[0], np.cumsum(np.bincount(row_of))])
    [start] = decoder_start(data, tokenizer)
    return PairRows(store, bounds.of(order), firsts, *most, start)


def rows_of(sizes: np.ndarray, most: tuple[int, int]) -> np.ndarray:
    """The row of each pair, int64 [pairs], of the sizes [pairs, 2]; rows have room for `most`."""
    rows, begun = np.zeros(len(sizes), np.int64), 0
    opened: list[list[int]] = []  # a row, and the room that both of its sides still have
    for pair, (source, target) in enumerate(sizes.tolist()):
        for place in opened:
            if source <= place[1] and target <= place[2]:
                break
        else:
            place = [begun, *most]
            opened, begun = [*opened[-ROWS_OPEN + 1 :], place], begun + 1
        rows[pair] = place[0]
        place[1] -= source
        place[2] -= target
    return rows


def decoder_start(data: DataConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that the decoder reads before a target: `data.start`, or else bos, or else the end
    of text.

    Raises:
        UserError: one is no id of the tokenizer.
    """
    ids = data.start or (start_id(tokenizer),)
    if max(ids) >= tokenizer.vocab_size:
        raise UserError(
            f"data.{data.kind}.start is {max(ids)}, and data.tokenizer '{tokenizer.name}' has ids "
            f"below {tokenizer.vocab_size}; give one of these, or leave it out"
        )
    return ids


def _bounds_of(store: TokenStore) -> Bounds:
    table = store.document_tables()
    sizes = np.diff(table, axis=0, prepend=np.zeros((1, table.shape[1]), table.dtype))
    ends = table[:, END]
    return Bounds(ends - sizes[:, END], ends - sizes[:, LEARNT], ends, sizes[:, TEXT_BYTES])


def _within(bounds: Bounds, chosen: np.ndarray, source: str, data: DataConfig) -> Bounds:
    """The pairs that a row holds; it is said how many others there are."""
    assert data.pairs is not None
    sizes, most = bounds.sizes, (data.source_length, data.sequence_length)
    fits = np.all(sizes <= np.asarray(most), axis=1)
    if fits.all():
        return bounds
    first = int(np.argmin(fits))
    what = (
        f"{np.count_nonzero(~fits):,} of {len(fits):,} pairs, which are too long; the first, "
        f"number {chosen[first] + 1:,}, has a source of {sizes[first, 0]} tokens and a target of "
        f"{sizes[first, 1]}, and rows hold {most[0]} and {most[1]}"
    )
    if data.pairs.too_long == "skip" and fits.any():
        say(f"{source}: left out {what}")
        return bounds.of(np.flatnonzero(fits))
    longest = np.maximum(sizes.max(axis=0), most)
    raise UserError(
        f"data source '{source}' has {what}. Give data.pairs.source_length={longest[0]} and "
        f"data.sequence_length={longest[1]}, or leave such pairs out with data.pairs.too_long=skip"
    )
