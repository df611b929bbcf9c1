"""Rows of fixed length cut from a stream of documents.

Row r of a stream holds stream[r·L : r·L + L + 1]: its first L tokens are inputs, its last L are
targets, so that over all rows every token but the first is a target once. The last row is padded
with segment 0.

A document longer than what is left of its row continues in the next row as a separate piece: its
positions restart at 0 and the model sees nothing of the piece before. No text is dropped.

Where a store has a loss mask, only the targets that it marks are in the loss.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxformer.batch import Batch
from jaxformer.data.store import TokenStore
from jaxformer.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class PackedRows:
    """Rows of `length` over the tokens [begin, end) of a store."""

    store: TokenStore
    begin: int
    end: int
    length: int

    @property
    def tokens(self) -> int:
        return self.end - self.begin

    @property
    def words(self) -> str:
        return f"{self.tokens:,} tokens, {len(self):,} rows of {self.length}"

    def manifest(self) -> dict[str, Any]:
        """What identifies the rows: the same text and tokens, wherever they are kept."""
        manifest = self.store.manifest
        masked = {"loss_mask": True} if self.store.has_loss_mask else {}
        return {"source": manifest.source, "sha256": manifest.sha256, **masked}

    def text_bytes(self, tokenizer: Tokenizer) -> int:
        """UTF-8 bytes of the text that the loss tokens stand for.

        If the first document is cut, its rest is counted from its own tokens without the first,
        which is never a target.
        """
        if self.end <= self.begin:
            return 0
        store = self.store
        total = store.text_bytes_from(self.begin)
        first, end = store.document_at(self.begin)
        if first == self.begin:
            return total
        document = store.read(first, end)
        rest = np.arange(self.begin + 1 - first, end - first)
        if document.learnt is not None:
            rest = rest[document.learnt[rest]]
        runs = np.split(rest, np.flatnonzero(np.diff(rest) != 1) + 1)
        return total + sum(
            tokenizer.count_bytes(document.tokens[run], document.tokens[: run[0]])
            for run in runs
            if len(run)
        )

    def __len__(self) -> int:
        return max(0, -(-(self.end - self.begin - 1) // self.length))

    def pack(self, rows: np.ndarray, keys: np.ndarray | None = None) -> Batch:
        """The rows with these numbers, [rows, length]; nothing about them is drawn from `keys`.

        Raises:
            UserError: a shard is missing, cut short or altered.
        """
        window, starts, learnt, valid = self._cut(np.asarray(rows, np.int64))
        column = np.arange(self.length, dtype=np.int32)
        start_columns = np.where(starts[:, :-1], column, 0)
        batch = Batch(
            inputs=window[:, :-1].copy(),
            targets=window[:, 1:].copy(),
            positions=column - np.maximum.accumulate(start_columns, axis=1),
            segment_ids=np.cumsum(starts[:, :-1], axis=1, dtype=np.int32) + 1,
            loss_mask=~starts[:, 1:] & learnt[:, 1:],
        )
        if (valid < self.length).any():
            padding = column >= valid[:, None]
            for array in batch:
                array[padding] = 0
        return batch

    def loss_tokens(self) -> int:
        """The number of targets in all rows that follow a token of their own document."""
        if self.end <= self.begin + 1:
            return 0
        store, begin = self.store, self.begin + 1
        if store.has_loss_mask:
            return store.learnt_before(self.end) - store.learnt_before(begin)
        starts = store.documents_before(self.end) - store.documents_before(begin)
        return self.end - begin - starts

    def _cut(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, where a document starts (a row's first token is a piece's start anyway and not
        marked), and which tokens the store puts in the loss, all [rows, length + 1]; pairs in each
        row [rows]."""
        begin = self.begin + rows * self.length
        valid = np.minimum(self.length, self.end - 1 - begin)
        shape = (len(rows), self.length + 1)
        window, starts = np.zeros(shape, np.int32), np.zeros(shape, bool)
        learnt = np.ones(shape, bool)
        stretches = self.store.read_all(begin.tolist(), (begin + valid + 1).tolist())
        for row, stretch in enumerate(stretches):
            count = len(stretch.tokens)
            window[row, :count] = stretch.tokens
            starts[row, 1:count] = stretch.starts[1:]
            if stretch.learnt is not None:
                learnt[row, :count] = stretch.learnt
        return window, starts, learnt, valid
