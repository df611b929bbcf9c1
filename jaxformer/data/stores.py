"""The rows that a configuration trains and validates on, from the stores of its sources."""

from functools import cached_property
from typing import Any

import numpy as np

from jaxformer.config import DataConfig, SourceConfig
from jaxformer.config.pairs import PairsConfig
from jaxformer.data.audio.packing import PackedRecordings
from jaxformer.data.audio.parts import AudioParts
from jaxformer.data.audio.rows import AudioRows
from jaxformer.data.audio.transcripts import TranscriptRows
from jaxformer.data.documents import PAIRS, Instructions
from jaxformer.data.images.captions import CaptionedRows
from jaxformer.data.images.parts import ImageParts
from jaxformer.data.images.rows import ImageRows
from jaxformer.data.media.parts import held_out_of
from jaxformer.data.packing import PackedRows
from jaxformer.data.pairs import PairRows, pair_rows
from jaxformer.data.plans import SHARD_BYTES, plan_of
from jaxformer.data.prepare import open_store
from jaxformer.data.recipe import store_of_source
from jaxformer.data.store import Tokens, TokenStore, open_prepared
from jaxformer.data.task_rows import Split, TaskRows
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import UserError
from jaxformer.tasks import TaskConfig

THREADS_FOR_A_BUCKET = 4
MEDIA: dict[str, type[ImageParts] | type[AudioParts]] = {"images": ImageParts, "audio": AudioParts}
OfRecordings = AudioRows | PackedRecordings | TranscriptRows
# All rows of one source.
Part = PackedRows | TaskRows | ImageRows | CaptionedRows | OfRecordings | PairRows


class Stores:
    """The stores of a configuration, and which of their rows train and validate.

    Each store is opened, or made, once, when its rows are first needed: with a validation
    source, validation needs no training source.
    """

    def __init__(
        self, data: DataConfig, tokenizer: Tokenizer, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.data, self.tokenizer = data, tokenizer
        self._shard_bytes = shard_bytes
        self._opened: dict[SourceConfig, TokenStore] = {}
        self._media = MEDIA[data.kind](tokenizer, data) if data.kind in MEDIA else None

    def for_stage(self, data: DataConfig) -> "Stores":
        """The stores of a stage of the run; those that are open already are shared."""
        stores = Stores(data, self.tokenizer, self._shard_bytes)
        stores._opened, stores._media = self._opened, self._media
        return stores

    @cached_property
    def training(self) -> tuple[Part, ...]:
        """The rows to train on, a part per source.

        Raises:
            UserError: a source is wrong, empty, or too small for a row.
        """
        data = self.data
        if self._media is not None:
            return self._media.training(data)
        if data.task is not None:
            return (self._task_rows(data.task, "train"),)
        if data.pairs is not None:
            return tuple(self._pairs(entry, "train") for entry in data.sources)
        return tuple(self._rows_to_train_on(entry) for entry in data.sources)

    @property
    def weights(self) -> tuple[float, ...]:
        """The share of each part of `training`."""
        data = self.data
        return tuple(entry.weight for entry in data.sources) if data.task is None else (1.0,)

    @cached_property
    def validation(self) -> tuple[Part, ...]:
        """The rows of `validation_source`, whole, or else the last tokens of every source, or
        pictures, recordings or pairs from all over it.

        Raises:
            UserError: a source is wrong or empty.
        """
        data, length = self.data, self.data.sequence_length
        if self._media is not None:
            return self._media.validation(data)
        if data.task is not None:
            return (self._task_rows(data.task, "validation"),)
        if data.held_out is not None and data.pairs is not None:
            return (self._pairs(data.held_out, "validation"),)
        if data.held_out is not None:
            store = self.open(data.held_out)
            return (PackedRows(store, 0, store.manifest.tokens, length),)
        if not data.validation_fraction:
            return ()
        if data.pairs is not None:
            return tuple(self._pairs(entry, "validation") for entry in data.sources)
        stores = [self.open(entry) for entry in data.sources]
        return tuple(
            PackedRows(store, self._first_held_out(store), store.manifest.tokens, length)
            for store in stores
        )

    def open(self, source: SourceConfig) -> TokenStore:
        """The token store of one source, made first if there is none; opened once."""
        if source not in self._opened:
            self._opened[source] = self._open(source)
        return self._opened[source]

    def _open(self, source: SourceConfig) -> TokenStore:
        data, tokenizer = self.data, self.tokenizer
        place = store_of_source(source.source)
        if place is None:
            return open_store(plan_of(source, data, tokenizer, self._shard_bytes))
        store = open_prepared(place, data)
        if data.pairs is not None:
            _check_pairs(source.source, store.manifest.instructions, data.pairs)
        if store.manifest.tokenizer_fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"data source '{source.source}' holds tokens of the tokenizer "
                f"'{store.manifest.tokenizer}', and data.tokenizer is '{tokenizer.name}', another "
                f"one; give the store's, or prepare the text again with this one"
            )
        return store

    @property
    def reading_threads(self) -> int:
        """How many batches to make at once: those of a disk hold the interpreter's lock, so that
        more than one would only wait; those of a bucket wait for it."""
        if self._media is not None:
            return self._media.reading_threads(self.data)
        remote = any(store.place.is_remote for store in self._opened.values())
        return THREADS_FOR_A_BUCKET if remote else 1

    def manifest(self) -> list[dict[str, Any]]:
        """What identifies the data in a run's manifest: the same content, wherever it is kept."""
        return [*self.training_manifest(), *self.validation_manifest()]

    def training_manifest(self) -> list[dict[str, Any]]:
        """The part of `manifest` that is about the rows to train on."""
        pairs = zip(self.training, self.weights, strict=True)
        return [_identity(rows, "train", weight) for rows, weight in pairs]

    def validation_manifest(self) -> list[dict[str, Any]]:
        """The part of `manifest` that is about the rows to validate on."""
        return [_identity(rows, "validation", None) for rows in self.validation]

    def _rows_to_train_on(self, source: SourceConfig) -> Part:
        store, length = self.open(source), self.data.sequence_length
        end = self._first_held_out(store)
        if end < length + 1:
            raise UserError(
                f"data source '{source.source}': {end:,} tokens to train on are fewer than one row "
                f"of data.sequence_length {length} and the token after it; shorten the rows or add "
                f"text"
            )
        return PackedRows(store, 0, end, length)

    def _pairs(self, source: SourceConfig, split: Split) -> PairRows:
        """The pairs of a source; with a validation source, all of both sources are taken."""
        store, data = self.open(source), self.data
        chosen = np.arange(count := store.manifest.documents)
        if data.held_out is None and data.validation_fraction:
            held = held_out_of(source.source, count, "pairs", data.validation_fraction)
            chosen = held if split == "validation" else np.setdiff1d(chosen, held)
        return pair_rows(store, chosen, data, self.tokenizer)

    def _task_rows(self, task: TaskConfig, split: Split) -> TaskRows:
        data, tokenizer = self.data, self.tokenizer
        if task.vocabulary > tokenizer.vocab_size:
            raise UserError(
                f"data.task {task.kind} needs {task.vocabulary} ids, and data.tokenizer "
                f"'{data.tokenizer}' has {tokenizer.vocab_size}; give data.tokenizer="
                f"ids:{task.vocabulary}"
            )
        if not task.needs_text:
            return TaskRows(task, task.sample, split, data.sequence_length)
        store = self.open(data.sources[0])
        cut = self._first_held_out(store)
        begin, end = (0, cut) if split == "train" else (cut, store.manifest.tokens)
        text = Tokens(store, begin, end)
        sample = task.sample_from(text, tokenizer.encode)
        rows = TaskRows(task, sample, split, data.sequence_length)
        try:
            rows.pack(np.zeros(1, np.int64))
        except ValueError as error:
            raise UserError(f"data.task {task.kind}: {error}") from None
        return rows

    def _first_held_out(self, store: TokenStore) -> int:
        """⌊(1 − validation_fraction)·tokens⌋, even inside a document; with a validation source, all
        tokens train."""
        data = self.data
        fraction = 0.0 if data.validation_source is not None else data.validation_fraction
        return int((1 - fraction) * store.manifest.tokens)


def _check_pairs(source: str, made: Instructions | None, pairs: PairsConfig) -> None:
    """Refuse a prepared store of something else than these pairs."""
    if made is None or made.format != PAIRS:
        raise UserError(
            f"data source '{source}' holds no pairs of texts; prepare them with data.kind=pairs"
        )
    if made.columns != (own := (pairs.source, pairs.target)):
        raise UserError(
            f"data source '{source}' holds pairs of the columns {' and '.join(made.columns)}, and "
            f"data.pairs.source and target are {' and '.join(own)}; give the store's, or prepare "
            f"the texts again with these"
        )


def _identity(rows: Part, split: Split, weight: float | None) -> dict[str, Any]:
    return {
        **rows.manifest(),
        "split": split,
        "weight": weight,
        "tokens": rows.tokens,
        "rows": len(rows),
    }
