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
from jaxformer.data.store import LOSS_MASK, TOKENS, TokenStore
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import UserError


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

    def manifest(self) -> dict[str, Any]:
        """What identifies the rows: the same text and tokens, wherever they are kept."""
        files = self.store.manifest.files
        return {
            "source": self.store.manifest.source,
            "sha256": files[TOKENS].sha256,
            **({"loss_mask_sha256": files[LOSS_MASK].sha256} if LOSS_MASK in files else {}),
        }

    def text_bytes(self, tokenizer: Tokenizer) -> int:
        """UTF-8 bytes of the text that the loss tokens stand for.

        If the first document is cut, its rest is counted from its own tokens without the first,
        which is never a target.
        """
        store = self.store
        document = int(np.searchsorted(store.offsets, self.begin, side="left"))
        total = int(store.text_bytes[-1] - store.text_bytes[document])
        if store.offsets[document] == self.begin:
            return total
        first, end = store.offsets[document - 1], store.offsets[document]
        rest = np.arange(self.begin + 1, end)
        if store.loss_mask is not None:
            rest = rest[store.loss_mask[rest]]
        runs = np.split(rest, np.flatnonzero(np.diff(rest) != 1) + 1)
        return total + sum(
            tokenizer.count_bytes(store.tokens[run], store.tokens[first : run[0]])
            for run in runs
            if len(run)
        )

    def __len__(self) -> int:
        return max(0, -(-(self.end - self.begin - 1) // self.length))

    def pack(self, rows: np.ndarray) -> Batch:
        """The rows with these numbers, [rows, length].

        Raises:
            UserError: the store holds ids beyond the vocabulary it was made with.
        """
        numbers = np.asarray(rows, np.int64)
        window, starts, valid = self._cut(numbers)
        self._check_ids(window)
        column = np.arange(self.length, dtype=np.int32)
        start_columns = np.where(starts[:, :-1], column, 0)
        batch = Batch(
            inputs=window[:, :-1].copy(),
            targets=window[:, 1:].copy(),
            positions=column - np.maximum.accumulate(start_columns, axis=1),
            segment_ids=np.cumsum(starts[:, :-1], axis=1, dtype=np.int32) + 1,
            loss_mask=~starts[:, 1:] & self._learnt(numbers),
        )
        if (valid < self.length).any():
            padding = column >= valid[:, None]
            for array in batch:
                array[padding] = 0
        return batch

    def loss_tokens(self) -> int:
        """The number of targets in all rows that follow a token of their own document."""
        if self.store.loss_mask is not None:
            return int(np.count_nonzero(self.store.loss_mask[self.begin + 1 : self.end]))
        pairs = max(0, self.end - self.begin - 1)
        bounds = [self.begin, self.begin + pairs]
        first, last = np.searchsorted(self.store.offsets, bounds, side="right")
        return pairs - int(last - first)

    def _cut(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens [rows, length + 1], where a document starts [rows, length + 1] (a row's first
        token is a piece's start anyway and not marked), and pairs in each row [rows]."""
        begin = self.begin + rows * self.length
        valid = np.minimum(self.length, self.end - 1 - begin)
        window = np.zeros((len(rows), self.length + 1), np.int32)
        for row, (at, pairs) in enumerate(zip(begin.tolist(), valid.tolist(), strict=True)):
            window[row, : pairs + 1] = self.store.tokens[at : at + pairs + 1]
        offsets = self.store.offsets
        first = np.searchsorted(offsets, begin, side="right")
        counts = np.searchsorted(offsets, begin + valid, side="right") - first
        row_of = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(row_of)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.zeros(window.shape, bool)
        starts[row_of, offsets[first[row_of] + within] - begin[row_of]] = True
        return window, starts, valid

    def _learnt(self, rows: np.ndarray) -> np.ndarray:
        """Which targets the store's mask puts in the loss, [rows, length]; all without a mask."""
        learnt = np.ones((len(rows), self.length), bool)
        if self.store.loss_mask is not None:
            for row, at in enumerate((self.begin + rows * self.length + 1).tolist()):
                piece = self.store.loss_mask[at : min(at + self.length, self.end)]
                learnt[row, : len(piece)] = piece
        return learnt

    def _check_ids(self, window: np.ndarray) -> None:
        vocab_size = self.store.manifest.vocab_size
        if window.size and (window.max() >= vocab_size or window.min() < 0):
            raise UserError(
                f"{self.store.path}: holds id {window.max()}, beyond the vocabulary of "
                f"{vocab_size}: its files are damaged. Remove the folder and run again"
            )
