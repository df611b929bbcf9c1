"""The recordings that a configuration trains and validates on."""

from dataclasses import replace

import numpy as np

from jaxformer.config import DataConfig
from jaxformer.data.audio.making import AudioRecipe
from jaxformer.data.audio.packing import PackedRecordings
from jaxformer.data.audio.rows import AudioRows
from jaxformer.data.audio.store import AudioStore
from jaxformer.data.audio.texts import normalised, places_needed
from jaxformer.data.audio.transcripts import TranscriptRows
from jaxformer.data.media.parts import Parts, classes_in, ids_of
from jaxformer.data.pairs import decoder_start
from jaxformer.errors import UserError
from jaxformer.terminal import say

THREADS_TO_RESAMPLE = 4


class AudioParts(Parts[AudioStore, AudioRows | PackedRecordings | TranscriptRows]):
    """The recordings of every source."""

    recipe = AudioRecipe

    def training_rows(
        self, store: AudioStore, chosen: np.ndarray, data: DataConfig
    ) -> AudioRows | PackedRecordings | TranscriptRows:
        if data.writes:
            return self._transcripts(store, chosen, data)
        rows = _within(_fitting(self._rows(store, chosen, data)))
        return PackedRecordings.of(rows) if rows.audio.pack else rows

    def validation_rows(
        self, store: AudioStore, chosen: np.ndarray, data: DataConfig
    ) -> AudioRows | TranscriptRows:
        if data.writes:
            return self._transcripts(store, chosen, data)
        return _within(self._rows(store, chosen, data))

    def reading_threads(self, data: DataConfig) -> int:
        """Only the resampling of other speeds lets other threads run meanwhile."""
        assert data.audio is not None
        return 1 if data.audio.augment.speed is None else THREADS_TO_RESAMPLE

    def _transcripts(
        self, store: AudioStore, chosen: np.ndarray, data: DataConfig
    ) -> TranscriptRows:
        start = decoder_start(data, self.tokenizer)
        rows, eos = self._rows(store, chosen, data), self.tokenizer.eos_id
        whole = [np.array([*start[1:], *ids, eos], np.int32) for ids in rows.targets]
        return TranscriptRows(_within(replace(rows, targets=whole)), start)

    def _rows(self, store: AudioStore, chosen: np.ndarray, data: DataConfig) -> AudioRows:
        audio = data.audio
        assert audio is not None
        if audio.text is not None:
            texts = [normalised(str(store.targets[row]), audio.letters) for row in chosen]
            targets = self.tokenizer.encode_documents(texts)
        else:
            ids = ids_of(store.manifest, classes_in(self.tokenizer, data))
            labels = np.asarray([store.targets[row] for row in chosen], np.int32)
            targets = list((labels if ids is None else ids[labels])[:, None])
        return AudioRows(store, chosen, targets, audio, data.source_length, data.num_labels)


def _fitting(rows: AudioRows) -> AudioRows:
    """Those with as many places as CTC needs for their texts; it is said how many others there are.

    Raises:
        UserError: all are others.
    """
    if rows.audio.text is None:
        return rows
    needed = np.asarray([places_needed(each) for each in rows.targets])
    short = np.flatnonzero(needed > rows.places)
    if not len(short):
        return rows
    first = short[0]
    what = (
        f"have texts with more labels than CTC can give to their places; the first: "
        f"{rows.place_of(first)} needs {needed[first]} places and has {rows.places[first]}. A "
        f"smaller model.inputs.subsampling, or a tokenizer with fewer ids per word, keeps them"
    )
    return _without(rows, short, what)


def _within(rows: AudioRows) -> AudioRows:
    """Those that a row of a batch holds.

    Raises:
        UserError: there are others, and `data.audio.too_long` is error; or all are others.
    """
    labels = np.asarray([len(each) for each in rows.targets])
    is_long = rows.places > rows.length
    long = np.flatnonzero(is_long | (labels > rows.num_labels))
    if not len(long):
        return rows
    first = long[0]
    length, most = "data.sequence_length", "data.audio.max_labels"
    if rows.audio.source_length is not None:
        length, most = "data.audio.source_length", "data.sequence_length"
    if is_long[first]:
        per_second = rows.audio.sample_rate / rows.audio.samples_per_place
        fault = (
            f"the recording lasts {rows.places[first] / per_second:.2f} s, and rows of "
            f"{length} {rows.length} hold {rows.length / per_second:.2f} s"
        )
        longer = f"{length}={rows.places.max()}"
    else:
        fault = f"the text has {labels[first]} ids, and rows hold {rows.num_labels}"
        longer = f"{most}={labels.max()}"
    fault = f"{rows.place_of(first)}: {fault}"
    if rows.audio.too_long == "error":
        raise UserError(
            f"{fault}; {len(long):,} of {len(rows):,} recordings are too long. Give {longer}, or "
            f"leave them out with data.audio.too_long=skip"
        )
    return _without(rows, long, f"are too long; the first: {fault}")


def _without(rows: AudioRows, left_out: np.ndarray, why: str) -> AudioRows:
    """The rows but for those `left_out`, which is said."""
    source, kept = rows.store.manifest.source, np.delete(np.arange(len(rows)), left_out)
    if not len(kept):
        raise UserError(f"data source '{source}': all {len(rows):,} recordings {why}")
    say(f"{source}: left out {len(left_out):,} of {len(rows):,} recordings, which {why}")
    targets = [rows.targets[int(row)] for row in kept]
    return replace(rows, chosen=rows.chosen[kept], targets=targets)
