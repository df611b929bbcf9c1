"""Rows of several recordings, to train on: hardly any of their places are padding.

Which recordings share a row follows from their lengths alone, and stays so; an epoch has every row
once, in another order each time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxformer.batch import Batch
from jaxformer.data.audio.augmentation import slowest
from jaxformer.data.audio.rows import AudioRows, places_of
from jaxformer.data.tokenizers import Tokenizer

BETWEEN = 1  # places between two recordings of a row, and between their labels


@dataclass(frozen=True)
class PackedRecordings:
    """Row r has the recordings with the numbers `groups[r]`, one behind another."""

    recordings: AudioRows
    groups: Sequence[np.ndarray] = field(repr=False)  # int64 [recordings of the row] each
    room: np.ndarray = field(repr=False)  # int64, the most places that each recording may take

    @classmethod
    def of(cls, recordings: AudioRows) -> "PackedRecordings":
        """Rows in which every recording has the room to be played at its slowest."""
        samples = np.ceil(recordings.samples / slowest(recordings.audio.augment))
        most = places_of(samples.astype(np.int64), recordings.audio)
        room = np.minimum(most, recordings.length)
        groups = best_fit(room + BETWEEN, recordings.length + BETWEEN)
        return cls(recordings, groups, room)

    @property
    def tokens(self) -> int:
        return len(self) * self.recordings.length

    @property
    def filled(self) -> int:
        """How many of the rows' places hold sound, before its speed is changed."""
        return self.recordings.filled

    @property
    def words(self) -> str:
        return f"{self.recordings.words} in {len(self):,} rows"

    def manifest(self) -> dict[str, Any]:
        """What identifies the rows, besides how many there are and their length."""
        audio = self.recordings.audio
        return {**self.recordings.manifest(), "packed": {"slowest": slowest(audio.augment)}}

    def text_bytes(self, tokenizer: Tokenizer) -> int:
        return self.recordings.text_bytes(tokenizer)

    def __len__(self) -> int:
        return len(self.groups)

    def pack(self, rows: np.ndarray, keys: np.ndarray | None = None) -> Batch:
        """The rows with these numbers; see `Batch`.

        Args:
            keys: uint64 [rows], from which the augmentation of each row's recordings is drawn; None
                for recordings as they are.
        """
        groups = [self.groups[row] for row in rows]
        every = np.concatenate(groups)
        of_each = None if keys is None else np.repeat(keys, [len(group) for group in groups])
        waveforms = iter(self.recordings.waveforms(every, of_each, self.room[every]))
        batch = self._empty(len(groups))
        for row, group in enumerate(groups):
            self._fill(Batch(*(array[row] for array in batch)), group, waveforms)
        return batch

    def loss_tokens(self) -> int:
        return self.recordings.loss_tokens()

    def _empty(self, rows: int) -> Batch:
        recordings = self.recordings
        shape = (rows, recordings.length)
        samples = recordings.length * recordings.audio.samples_per_place
        labels = (rows, recordings.num_labels)
        return Batch(
            np.zeros((rows, samples), np.int16),
            np.zeros(labels, np.int32),
            np.zeros(shape, np.int32),
            np.zeros(shape, np.int32),
            np.zeros(labels, np.bool_),
        )

    def _fill(self, row: Batch, group: np.ndarray, waveforms: Iterator[np.ndarray]) -> None:
        """Put the recordings of a group into the arrays of a row."""
        audio = self.recordings.audio
        place = label = 0
        for number, recording in enumerate(group, start=1):
            samples = next(waveforms)
            first, count = place * audio.samples_per_place, np.asarray(len(samples))
            end = place + int(places_of(count, audio))
            row.inputs[first : first + len(samples)] = samples
            row.positions[place:end] = np.arange(end - place)
            row.segment_ids[place:end] = number
            place = end + BETWEEN
            if audio.text is not None:
                labels = self.recordings.targets[int(recording)]
                row.targets[label : label + len(labels)] = labels
                row.loss_mask[label : label + len(labels)] = True
                label += len(labels) + BETWEEN


def best_fit(sizes: np.ndarray, room: int) -> list[np.ndarray]:
    """Groups of numbers whose sizes sum to at most `room` each: the largest size first, each goes
    to the group with the least room left that it fits into, or else to a new one. At most 11/9 of
    the fewest groups that there can be, and four more (Johnson et al., 1974,
    doi:10.1137/0203025).
    """
    groups: list[list[int]] = []
    with_left: list[list[int]] = [[] for _ in range(room + 1)]  # groups, by the room that is left
    counts = np.zeros(room + 1, np.int64)
    for number in np.argsort(-sizes, kind="stable"):
        size = int(sizes[number])
        if counts[size:].any():
            left = size + int(np.argmax(counts[size:] > 0))
            group = with_left[left].pop()
            counts[left] -= 1
        else:
            left, group = room, len(groups)
            groups.append([])
        groups[group].append(int(number))
        with_left[left - size].append(group)
        counts[left - size] += 1
    return [np.asarray(group, np.int64) for group in groups]
