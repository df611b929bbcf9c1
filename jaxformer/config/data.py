"""Where a run's data comes from."""

import math
from typing import Annotated, Any, Literal

import jax
import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from jaxformer.batch import Batch, Pair, Source
from jaxformer.config.audio import AudioConfig
from jaxformer.config.data_kinds import (
    AUDIO_SOURCES,
    IMAGE_SOURCES,
    MEDIA,
    PAIR_SOURCES,
    WITH_COLUMNS,
    DataKind,
    fault_of_media,
    fault_of_pairs,
    fault_of_text,
    with_defaults,
)
from jaxformer.config.images import ImagesConfig
from jaxformer.config.pairs import PairsConfig
from jaxformer.config.places import AnyPlace, LocalPlace, StoragePlace
from jaxformer.paths import fault_of_local_place
from jaxformer.schema.base import Schema
from jaxformer.storage import fault_of_url
from jaxformer.tasks import TaskUnion

Format = Literal["text", "messages", "completion"]
NumRows = Annotated[int, Field(ge=1, le=1 << 24)]
RowLength = Annotated[int, Field(ge=2)]
ColumnPair = Annotated[tuple[str, ...], Field(min_length=2, max_length=2, strict=False)]
WITHOUT_COLUMNS = ("builtin", "text")
FILES = ("text", "jsonl", "parquet", "arrayrecord", "webdataset")
SOURCES = f"builtin:python, text:GLOB, {WITH_COLUMNS}, store:PLACE"
COLUMNS: dict[str, str | tuple[str, ...]] = {
    "text": "text",
    "messages": "messages",
    "completion": ("prompt", "completion"),
}


class SourceConfig(Schema):
    """One source of a mixture."""

    source: str = Field(description="as `data.source`")
    weight: PositiveFloat = Field(
        1.0, description="its share of the rows, relative to the weights of the other sources"
    )
    format: Format | None = Field(None, description="as `data.format`, which it defaults to")
    column: str | ColumnPair | None = Field(
        None,
        description="as `data.column`; the usual column of the format if it differs from "
        "data.format",
    )


class DeduplicateConfig(Schema):
    """Leaves out documents that are in their source already, or in a reference."""

    kind: Literal["exact", "minhash"] = Field(
        "exact", description="exact: the same text; minhash: most of its words in the same order"
    )
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.72, description="for minhash, the Jaccard similarity of runs of five words from which on"
    )
    against: str | None = Field(
        None,
        description="a source whose texts leave training, too; data.validation_source if null",
    )


class StageConfig(Schema):
    """The steps up to `until`, and what they train on that differs from `data` and `train`.

    A stage reads on in every source where the stages before it stopped, as long as its rows have
    the same length: no row is repeated or skipped. Rows of another length are cut anew, and read
    from the beginning of their order. Validation is the same in all stages: that of `data`.
    """

    until: PositiveInt | None = Field(
        None, description="the step at which it ends; null in the last stage: train.steps"
    )
    source: str | Annotated[tuple[SourceConfig, ...], Field(min_length=1, strict=False)] | None = (
        Field(None, description="as `data.source`, which it defaults to")
    )
    sequence_length: RowLength | None = Field(
        None, description="tokens per row; data.sequence_length if null"
    )
    batch_size: NumRows | None = Field(
        None, description="rows per update; train.batch_size if null"
    )

    @model_validator(mode="before")
    @classmethod
    def _changes_what_may_change(cls, given: Any) -> Any:
        for key in given if isinstance(given, dict) else ():
            if key in DataConfig.model_fields and key not in cls.model_fields:
                entry = key in SourceConfig.model_fields
                hint = "; give it in an entry of source" if entry else ""
                raise ValueError(
                    f"{key} cannot change from stage to stage{hint}; allowed: "
                    f"{', '.join(cls.model_fields)}"
                )
        return given


class DataConfig(Schema):
    """Where data comes from and how it becomes rows of `sequence_length` tokens.

    For `messages`, only the assistant's answers are in the loss; for `completion`, only what
    follows the prompt. For `images`, a row is one picture with its class or text. For `audio`, a
    row is one recording, and its text or class is in the loss. For `pairs`, a row has several pairs
    of texts, and the second text of each is.
    """

    byte_counts = frozenset({"cache_bytes"})

    kind: DataKind = Field(
        "text",
        description="text, pictures with a class or a text each, recordings with a text or a class "
        "each, or pairs of texts, for model.encoder",
    )
    images: ImagesConfig | None = Field(
        None, description="for kind images, what pictures are brought to; null for others"
    )
    audio: AudioConfig | None = Field(
        None, description="for kind audio, what recordings are brought to; null for others"
    )
    pairs: PairsConfig | None = Field(
        None, description="for kind pairs, where the two texts are; null for others"
    )
    task: TaskUnion | None = Field(None, description="train on a synthetic task instead of text")

    source: str | Annotated[tuple[SourceConfig, ...], Field(min_length=1, strict=False)] = Field(
        "builtin:python",
        description=f"{SOURCES}, or a list of them with weights; a GLOB may begin with gs://, "
        f"s3:// or https://. For images: {IMAGE_SOURCES}. "
        f"For audio: {AUDIO_SOURCES}. For pairs: {PAIR_SOURCES}",
    )
    validation_source: str | None = Field(None, description="a source of its own for validation")
    validation_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.05,
        description="the share of every source that is held out, if there is no "
        "validation_source: its end, or pictures, recordings or pairs from all over it",
    )
    tokenizer: AnyPlace = Field(
        "bytes",
        description="bytes, ids:N for a task, a tokenizer.json file, or a Hub name; for classes, "
        "classes (the default), classes:N for labels from 0 to N - 1, or a classes.json file; for "
        "texts of recordings, characters as well, those that the sources have",
    )
    add_bos: bool | Literal["auto"] = Field(
        "auto",
        description="put BOS before every text; auto: if the tokenizer's files say so",
    )
    sequence_length: RowLength = Field(
        256,
        description="tokens per row, or of a text beside a picture; patches that the model makes "
        "of a picture, or places of the longest recording",
    )
    format: Format = Field(
        "text", description="what a row holds; text: and builtin: sources hold text only"
    )
    column: str | ColumnPair = Field(
        "text",
        description="its column, or a field inside of one, as meta.text; the default depends on "
        "the format: text, messages, or [prompt, completion]",
    )
    invalid_utf8: Literal["error", "replace", "skip"] = Field(
        "error",
        description="what happens to bytes that are not UTF-8: `replace` puts U+FFFD in their "
        "place, `skip` leaves the document out",
    )
    missing_text: Literal["error", "skip"] = Field(
        "error", description="what happens to rows whose column is null or missing"
    )
    bad_rows: Literal["error", "skip"] = Field(
        "error",
        description="what happens to rows that are not JSON, are not objects, or hold something "
        "other than text in the column, and to pictures and recordings that cannot be decoded or "
        "have no class or text; a damaged file is always an error",
    )
    min_chars: Annotated[int, Field(ge=1)] | None = Field(
        None, description="leaves out documents with fewer characters"
    )
    max_chars: Annotated[int, Field(ge=1)] | None = Field(
        None, description="leaves out documents with more characters"
    )
    deduplicate: DeduplicateConfig | None = Field(
        None, description="leave duplicates out of the training sources; null: keep them"
    )
    store_dir: Annotated[StoragePlace, Field(min_length=1)] | None = Field(
        None,
        description="where stores are kept, such as gs://BUCKET/FOLDER; data.cache_dir if null",
    )
    cache_dir: LocalPlace = Field(
        "~/.cache/jaxformer",
        description="a folder on this machine, for stores, and for what has been read of stores in "
        "a bucket",
    )
    cache_bytes: Annotated[int, Field(ge=0)] = Field(
        16 << 30, description="how much of stores in a bucket is kept in data.cache_dir; 0: nothing"
    )
    prefetch: Annotated[int, Field(ge=0, le=1024)] = Field(
        4, description="batches prepared ahead of the step"
    )
    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1, strict=False)] | None = Field(
        None,
        description="other data, rows of another length or other batches from certain steps on; "
        "null for the same in the whole run",
    )

    @model_validator(mode="after")
    def _keys_are_of_their_kind(self) -> "DataConfig":
        if self.is_media:
            fault = fault_of_media(self)
        else:
            fault = fault_of_text(self) if self.kind == "text" else fault_of_pairs(self)
        if fault is not None:
            raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _task_fits_its_rows(self) -> "DataConfig":
        if self.task is not None:
            self.task.check(self.sequence_length)
        return self

    @model_validator(mode="after")
    def _stages_are_data(self) -> "DataConfig":
        for number, stage in enumerate(self.stages or ()):
            if self.task is not None and stage.source is not None:
                raise ValueError(
                    f"stages.{number}.source is given, but the rows are those of task "
                    f"{self.task.kind}; leave one of them out"
                )
            try:
                self.of_stage(stage)
            except ValidationError as error:
                said = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"stages.{number}: {said}") from None
        return self

    def of_stage(self, stage: StageConfig) -> "DataConfig":
        """What a stage trains on, as a section `data` without stages."""
        data = self.model_dump() | {"stages": None}
        if stage.source is not None:
            data["source"] = stage.source
            entries = [stage.source] if isinstance(stage.source, str) else stage.source
            names = [entry if isinstance(entry, str) else entry.source for entry in entries]
            if not any(map(_has_columns, [*names, self.validation_source or ""])):
                data["column"] = COLUMNS[self.format]  # the column is that of the other sources
        if stage.sequence_length is not None:
            data["sequence_length"] = stage.sequence_length
        return DataConfig.model_validate(data)

    @property
    def of_stages(self) -> tuple["DataConfig", ...]:
        """What the run trains on, a section for every stage."""
        return tuple(self.of_stage(stage) for stage in self.stages or (StageConfig(),))

    def spec(self, rows: int) -> Batch:
        """The shapes and types of the arrays of a batch, as `jax.ShapeDtypeStruct`s."""

        def array(*shape: int, dtype: type = np.int32) -> Any:
            return jax.ShapeDtypeStruct((rows, *shape), dtype)

        tokens = answers = array(self.sequence_length)
        inputs: Any = tokens
        if self.images is not None:
            inputs, answers = array(*self.images.shape, dtype=np.uint8), array(1)
            if self.images.text is not None:
                inputs = Pair(tokens, Source(inputs))
        elif self.audio is not None:
            places = self.source_length
            inputs = array(places * self.audio.samples_per_place, dtype=np.int16)
            answers = array(self.num_labels)
            if self.writes:
                inputs = Pair(tokens, Source(inputs, array(places), array(places)))
        elif self.pairs is not None:
            inputs = Pair(tokens, Source(*[array(self.source_length)] * 3))
        mask = array(*answers.shape[1:], dtype=np.bool_)
        return Batch(inputs, answers, tokens, tokens, mask)

    @property
    def writes(self) -> bool:
        """Whether a decoder writes the targets of what an encoder reads."""
        audio = self.audio
        return self.pairs is not None or (audio is not None and audio.source_length is not None)

    @property
    def source_length(self) -> int:
        """How many places the rows of `audio` and of the sources of `pairs` have."""
        section = self.pairs or self.audio
        assert section is not None
        return section.source_length or self.sequence_length

    @property
    def start(self) -> tuple[int, ...] | None:
        """The tokens that a decoder reads before a target; None if they are the tokenizer's."""
        given = None if (section := self.pairs or self.audio) is None else section.start
        return (given,) if isinstance(given, int) else given

    @property
    def is_media(self) -> bool:
        """Whether rows are pictures or recordings, and no texts in token stores."""
        return self.kind in MEDIA

    @property
    def num_labels(self) -> int:
        """How many targets a row of `audio` has."""
        assert self.audio is not None
        return 1 if self.audio.text is None else self.audio.max_labels or self.sequence_length

    @property
    def of_shapes(self) -> "DataConfig":
        """The part that `spec` depends on; everything else has its default."""
        images, audio, pairs = self.images, self.audio, self.pairs
        if images is not None:
            images = ImagesConfig(size=images.size, channels=images.channels, text=images.text)
        if audio is not None:
            keys = {
                "sample_rate",
                "samples_per_place",
                "text",
                "label",
                "max_labels",
                "source_length",
            }
            audio = AudioConfig(**audio.model_dump(include=keys))
        if pairs is not None:
            keys = {"source", "target", "source_length"}
            pairs = PairsConfig(**pairs.model_dump(include=keys))
        defaults = DataConfig(sequence_length=self.sequence_length)
        own = {"kind": self.kind, "images": images, "audio": audio, "pairs": pairs}
        return defaults.model_copy(update=own)

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The training sources, each with its format and column if it is text."""
        if isinstance(self.source, str):
            return (self._whole(SourceConfig(source=self.source)),)
        return tuple(self._whole(entry) for entry in self.source)

    @property
    def all_sources(self) -> tuple[SourceConfig, ...]:
        """The training sources of every stage, each once."""
        return tuple(dict.fromkeys(each for stage in self.of_stages for each in stage.sources))

    @property
    def row_options(self) -> dict[str, str | int | None]:
        """The options that decide which rows of a source are taken."""
        return {
            "invalid_utf8": self.invalid_utf8,
            "missing_text": self.missing_text,
            "bad_rows": self.bad_rows,
            "min_chars": self.min_chars,
            "max_chars": self.max_chars,
        }

    @property
    def held_out(self) -> SourceConfig | None:
        """The validation source, with its format and column."""
        if self.validation_source is None:
            return None
        return self._whole(SourceConfig(source=self.validation_source))

    @property
    def reference(self) -> SourceConfig | None:
        """The source whose texts leave the training sources, with its format and column."""
        if self.deduplicate is None:
            return None
        against = self.deduplicate.against
        return self.held_out if against is None else self._whole(SourceConfig(source=against))

    def _whole(self, entry: SourceConfig) -> SourceConfig:
        if self.kind != "text":
            return entry
        kind = entry.format or self.format
        column = self.column if kind == self.format else COLUMNS[kind]
        return entry.model_copy(update={"format": kind, "column": entry.column or column})

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_kind_and_format(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = with_defaults(data)
        if "column" not in data:
            return {**data, "column": COLUMNS.get(str(data.get("format")), "text")}
        return data

    @model_validator(mode="after")
    def _sources_are_where_they_can_be(self) -> "DataConfig":
        for entry in (*self.sources, *([self.held_out] if self.held_out else [])):
            kind, _, where = entry.source.partition(":")
            fault_of = fault_of_url if kind in (*FILES, "store") else fault_of_local_place
            if (fault := fault_of(where)) is not None:
                raise ValueError(f"source: {fault}")  # which names the place, but no password
        return self

    @model_validator(mode="after")
    def _lengths_are_in_order(self) -> "DataConfig":
        if (self.min_chars or 1) > (self.max_chars or math.inf):
            raise ValueError(
                f"min_chars {self.min_chars} is more than max_chars {self.max_chars}, so every "
                f"document would be left out; exchange them"
            )
        return self

    @model_validator(mode="after")
    def _formats_fit_their_sources(self) -> "DataConfig":
        if self.kind != "text":
            return self
        for entry in (*self.sources, *([self.held_out] if self.held_out else [])):
            is_pair = not isinstance(entry.column, str)
            if is_pair != (entry.format == "completion"):
                raise ValueError(
                    f"source '{entry.source}': format {entry.format} reads "
                    f"{'one column' if is_pair else 'two columns'}; give column: NAME, or "
                    f"for completion column: [PROMPT, COMPLETION]"
                )
            if entry.format != "text" and entry.source.partition(":")[0] in WITHOUT_COLUMNS:
                raise ValueError(
                    f"source '{entry.source}' has no columns, but its format is {entry.format}; "
                    f"allowed: {WITH_COLUMNS}, or format text"
                )
        return self

    @model_validator(mode="after")
    def _columns_are_read(self) -> "DataConfig":
        if self.kind != "text":
            return self
        given = [] if isinstance(self.source, str) else list(self.source)
        for entry in given:
            if entry.column is not None and not _has_columns(entry.source):
                raise ValueError(
                    f"source '{entry.source}' has no columns, but its column is {entry.column}; "
                    f"leave it out"
                )
        every = [entry.source for entry in self.sources] + [self.validation_source or ""]
        if self.column != COLUMNS[self.format] and not any(map(_has_columns, every)):
            raise ValueError(
                f"column is {self.column}, but no source has columns; leave it out, or give one "
                f"of {WITH_COLUMNS}"
            )
        return self


def _has_columns(source: str) -> bool:
    kind, colon, _ = source.partition(":")
    return bool(colon) and kind not in WITHOUT_COLUMNS
