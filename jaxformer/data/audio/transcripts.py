"""Recordings that an encoder reads, each with its text, which a decoder writes."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxformer.batch import Batch, Pair, Source
from jaxformer.data.audio.rows import AudioRows
from jaxformer.data.audio.store import AudioStore
from jaxformer.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class TranscriptRows:
    """Row r is the row r of `recordings`, whose targets are the tokens `start` but for the first,
    those of the text, and the end of text."""

    recordings: AudioRows
    start: tuple[int, ...]  # what the decoder reads before a text

    @property
    def store(self) -> AudioStore:
        return self.recordings.store

    @property
    def tokens(self) -> int:
        return len(self) * self.recordings.num_labels

    @property
    def words(self) -> str:
        return self.recordings.words

    def manifest(self) -> dict[str, Any]:
        """What identifies the rows: the same recordings and texts, wherever they are kept."""
        own = {"source_length": self.recordings.length, "start": list(self.start)}
        return {**self.recordings.manifest(), **own}

    def text_bytes(self, tokenizer: Tokenizer) -> int:
        texts = (each[self._given : -1] for each in self.recordings.targets)
        return sum(map(tokenizer.count_bytes, texts))

    def __len__(self) -> int:
        return len(self.recordings)

    def pack(self, rows: np.ndarray, keys: np.ndarray | None = None) -> Batch:
        """The rows with these numbers; see `Batch` and `AudioRows.pack`."""
        batch = self.recordings.pack(rows, keys)
        before = np.roll(batch.targets, 1, axis=1)
        before[:, 0] = self.start[0]
        segment_ids = batch.loss_mask.astype(np.int32)
        positions = np.arange(before.shape[1], dtype=np.int32)
        return Batch(
            Pair(before * segment_ids, Source(batch.inputs, batch.positions, batch.segment_ids)),
            batch.targets,
            positions * segment_ids,
            segment_ids,
            batch.loss_mask & (positions >= self._given),
        )

    def loss_tokens(self) -> int:
        return self.recordings.loss_tokens() - self._given * len(self)

    @property
    def _given(self) -> int:
        """How many targets of a row are not learned."""
        return len(self.start) - 1
