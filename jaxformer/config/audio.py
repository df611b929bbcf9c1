"""The section `data.audio`: what recordings are brought to, and how training changes them."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from jaxformer.schema.base import Schema

Speed = Annotated[float, Field(ge=0.5, le=2.0)]
Decibels = Annotated[float, Field(ge=-60.0, le=120.0)]
Speeds = Annotated[tuple[Speed, ...], Field(min_length=2, max_length=2, strict=False)]
Ids = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1, strict=False)]
Range = Annotated[tuple[Decibels, ...], Field(min_length=2, max_length=2, strict=False)]


class SoundAugmentConfig(Schema):
    """How recordings are changed at random each time that training hears them, in this order.

    Nothing is changed by default, and recordings to validate on never are.
    """

    speed: Speeds | None = Field(
        None,
        description="played slower or faster, and so lower or higher, by a factor between these "
        "in steps of 0.05, as [0.9, 1.1]; not so slow that a recording gets too long",
    )
    noise: Range | None = Field(
        None,
        description="white noise, with a ratio of signal to noise between these in dB, as [10, 40]",
    )
    gain: Range | None = Field(
        None, description="louder or quieter by an amount between these in dB, as [-10, 3]"
    )

    @model_validator(mode="after")
    def _ranges_are_in_order(self) -> "SoundAugmentConfig":
        for key, (low, high) in self.given.items():
            if low > high:
                raise ValueError(
                    f"{key} is [{low:g}, {high:g}]; allowed: [SMALLEST, LARGEST], "
                    f"[{high:g}, {low:g}]"
                )
        return self

    @property
    def given(self) -> dict[str, tuple[float, ...]]:
        """The ranges that are given, by their keys."""
        ranges = {"speed": self.speed, "noise": self.noise, "gain": self.gain}
        return {key: each for key, each in ranges.items() if each is not None}

    @property
    def words(self) -> str:
        """What is changed, as in `speed 0.9 to 1.1`; empty if nothing is."""
        return ", ".join(f"{key} {low:g} to {high:g}" for key, (low, high) in self.given.items())


class AudioConfig(Schema):
    """Recordings of one sample rate, each with a text or a class.

    They are decoded once into a store, and what `augment` says is done to those.
    """

    sample_rate: PositiveInt = Field(
        16000, description="in Hz, as model.inputs.sample_rate; other recordings are resampled"
    )
    samples_per_place: PositiveInt = Field(
        description="samples for each place that the model sees, such as hop · subsampling of "
        "model.inputs frames, by default 640, or 320 for raw"
    )
    column: str = Field(
        "audio",
        description="the column of the recordings, such as flac in a webdataset; audiofolder: has "
        "none",
    )
    text: str | None = Field(
        None,
        description="the column of what is said, for train.objective ctc or a decoder, or a field "
        "inside of one",
    )
    label: str | None = Field(
        None,
        description="the column of the classes, for train.objective classes, or a field inside of "
        "one; give text or label",
    )
    letters: Literal["as_is", "lower"] = Field(
        "as_is",
        description="lower: texts are read in small letters, without punctuation and with single "
        "spaces",
    )
    source_length: PositiveInt | None = Field(
        None,
        description="places of a recording's row where model.encoder reads it and a decoder writes "
        "its text, whose rows have data.sequence_length tokens; null without a decoder",
    )
    start: Ids | None = Field(
        None,
        description="the ids that a decoder reads before a text, as [50257, 50362] for an English "
        "Whisper; null: bos, or the end of text where the tokenizer has no bos",
    )
    max_labels: PositiveInt | None = Field(
        None,
        description="the most ids of a text; data.sequence_length if null, since a place has at "
        "most one. Fewer make steps faster",
    )
    pack: bool = Field(
        False,
        description="puts as many recordings into each row to train on as fit, so that few places "
        "are padding; for train.objective ctc and masked_frames",
    )
    too_long: Literal["error", "skip"] = Field(
        "error",
        description="what happens to recordings that are longer than data.sequence_length places, "
        "and to texts of more than max_labels ids: `skip` leaves them out",
    )
    augment: SoundAugmentConfig = Field(
        SoundAugmentConfig(),
        description="how recordings are changed each time that training hears them",
    )

    @property
    def target(self) -> tuple[Literal["label", "text"], str]:
        """The key of the column of what belongs to each recording, and its name."""
        if self.text is not None:
            return "text", self.text
        assert self.label is not None
        return "label", self.label

    @model_validator(mode="after")
    def _recordings_have_one_target(self) -> "AudioConfig":
        if (self.text is None) == (self.label is None):
            what = "neither text nor label is" if self.text is None else "text and label are both"
            raise ValueError(
                f"{what} given; allowed: text, the column of what is said, or label, that of the "
                f"classes"
            )
        if self.label is not None and (self.letters != "as_is" or self.max_labels is not None):
            key = "letters" if self.letters != "as_is" else "max_labels"
            raise ValueError(f"{key} is given, but classes have no letters; leave it out")
        if self.source_length is None:
            if self.start is not None:
                raise ValueError(
                    f"start is {list(self.start)}, but there is no decoder to read it; give "
                    f"source_length and model.encoder, or leave it out"
                )
        else:
            for key in ("label", "max_labels", "pack"):
                if value := getattr(self, key):
                    raise ValueError(
                        f"source_length is {self.source_length}, with which a decoder writes the "
                        f"text of one recording, in data.sequence_length tokens; leave {key} "
                        f"{str(value).lower()} out, or source_length"
                    )
        if self.pack and self.max_labels is not None:
            raise ValueError(
                f"max_labels is {self.max_labels}, but with pack a row has the texts of several "
                f"recordings; leave it out"
            )
        return self
