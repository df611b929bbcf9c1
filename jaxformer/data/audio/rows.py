"""Recordings as rows of batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from jaxformer.batch import Batch
from jaxformer.config.audio import AudioConfig
from jaxformer.data.audio.augmentation import augmented
from jaxformer.data.audio.store import AudioStore
from jaxformer.data.draws import streams
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.terminal import in_time


@dataclass(frozen=True)
class AudioRows:
    """Row r is the recording `chosen[r]` of a store, with the `targets[r]`: the ids of its text, or
    its class alone."""

    store: AudioStore
    chosen: np.ndarray = field(repr=False)  # int64 [rows], ascending
    targets: Sequence[np.ndarray] = field(repr=False)  # int32 [labels] each
    audio: AudioConfig
    length: int  # places of a row
    num_labels: int  # of a row

    @property
    def tokens(self) -> int:
        return len(self) * self.length

    @cached_property
    def samples(self) -> np.ndarray:
        """How many samples each recording has, int64 [rows]."""
        ends = self.store.ends
        return np.asarray((ends[1:] - ends[:-1])[self.chosen])

    @property
    def places(self) -> np.ndarray:
        """How many places each recording has, int64 [rows]."""
        return places_of(self.samples, self.audio)

    @property
    def filled(self) -> int:
        """How many of the rows' places hold sound; the others are padding."""
        return int(self.places.sum())

    @property
    def words(self) -> str:
        seconds = float(self.samples.sum()) / self.audio.sample_rate
        return f"{len(self):,} recordings, {in_time(seconds)}"

    def place_of(self, row: int) -> str:
        """Where a recording comes from, for messages."""
        return self.store.place_of(int(self.chosen[row]))

    def manifest(self) -> dict[str, Any]:
        """What identifies the rows: the same recordings and targets, wherever they are kept."""
        manifest = self.store.manifest
        letters = {} if self.audio.text is None else {"letters": self.audio.letters}
        return {"source": manifest.source, "sha256": manifest.sha256, **letters}

    def text_bytes(self, tokenizer: Tokenizer) -> int:
        """A class counts as one byte: bits per byte are bits per recording."""
        if self.audio.text is None:
            return len(self)
        return sum(tokenizer.count_bytes(each) for each in self.targets)

    def __len__(self) -> int:
        return len(self.chosen)

    def pack(self, rows: np.ndarray, keys: np.ndarray | None = None) -> Batch:
        """The rows with these numbers; see `Batch`.

        Args:
            keys: uint64 [rows], from which the augmentation of each row is drawn; None for
                recordings as they are.
        """
        rows = np.asarray(rows, np.int64)
        waveforms = self.waveforms(rows, keys, np.full(len(rows), self.length))
        batch = batch_of(waveforms, self.audio, self.length)
        targets = np.zeros((len(rows), self.num_labels), np.int32)
        mask = np.zeros(targets.shape, np.bool_)
        for number, row in enumerate(rows):
            labels = self.targets[row]
            targets[number, : len(labels)], mask[number, : len(labels)] = labels, True
        return batch._replace(targets=targets, loss_mask=mask)

    def waveforms(
        self, rows: np.ndarray, keys: np.ndarray | None, room: np.ndarray
    ) -> list[np.ndarray]:
        """The samples of these recordings, int16 [samples] each, changed by augmentation if there
        are `keys`; so changed they have at most `room` [rows] places each."""
        places, ends = self.chosen[rows], self.store.ends
        waveforms = [self.store.samples[ends[each] : ends[each + 1]] for each in places]
        if keys is None or not self.audio.augment.given:
            return waveforms
        longest = (room * self.audio.samples_per_place).tolist()
        every = zip(waveforms, streams(keys, places)[:, None], longest, strict=True)
        return [augmented(x, seed, self.audio.augment, most) for x, seed, most in every]

    def loss_tokens(self) -> int:
        return sum(map(len, self.targets))


def batch_of(waveforms: Sequence[np.ndarray], audio: AudioConfig, length: int) -> Batch:
    """A batch of recordings, int16 [samples] each, with rows of `length` places and one target that
    is not in the loss."""
    inputs = np.zeros((len(waveforms), length * audio.samples_per_place), np.int16)
    for row, samples in enumerate(waveforms):
        inputs[row, : len(samples)] = samples
    places = places_of(np.asarray([len(samples) for samples in waveforms], np.int64), audio)
    positions = np.tile(np.arange(length, dtype=np.int32), (len(waveforms), 1))
    segment_ids = (positions < places[:, None]).astype(np.int32)
    targets = np.zeros((len(waveforms), 1), np.int32)
    return Batch(inputs, targets, positions, segment_ids, np.zeros(targets.shape, np.bool_))


def places_of(samples: np.ndarray, audio: AudioConfig) -> np.ndarray:
    """How many places begin before the end of recordings of so many samples."""
    return -(-samples // audio.samples_per_place)
