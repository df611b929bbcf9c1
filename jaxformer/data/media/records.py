"""A row of a source: a picture or a recording with its label or text; and what labels are."""

from typing import Any, Literal, NamedTuple

from jaxformer.config import DataConfig
from jaxformer.data.rows import BadRow, named_kind
from jaxformer.errors import UserError, did_you_mean

# A list in the order of their ids (of `datasets`' ClassLabel), names without any order (folders,
# texts), numbers, or texts that are no classes.
LabelKind = Literal["listed", "names", "numbers", "texts"]
Target = Literal["label", "text"]
USUAL = {
    "images": ("image", "img", "jpg", "png", "jpeg", "webp", "picture", "pixel_values"),
    "audio": ("audio", "wav", "flac", "ogg", "mp3", "speech", "file"),
    "label": ("label", "labels", "fine_label", "cls", "class", "target", "category"),
    "text": (
        *("text", "sentence", "transcript", "transcription", "normalized_text", "txt"),
        *("caption", "captions", "alt_text"),
    ),
}
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
RECORDINGS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au")


class Wanted(NamedTuple):
    """What is read of a source: the column of pictures or recordings, and that of their labels or
    texts; files with the endings `ends` are such."""

    section: Literal["images", "audio"]  # of `data`, whose keys name the columns
    noun: str
    ends: tuple[str, ...]
    column: str
    key: Target
    target: str


def wanted_of(data: DataConfig) -> Wanted:
    """What a configuration reads of its sources."""
    if data.images is not None:
        images = data.images
        return Wanted("images", "picture", (*PICTURES, ".avif"), images.column, *images.target)
    assert data.audio is not None
    audio = data.audio
    return Wanted("audio", "recording", RECORDINGS, audio.column, *audio.target)


class Labels(NamedTuple):
    """What the labels of a source are; `names` if they are known before a row is read."""

    kind: LabelKind
    names: tuple[str, ...] | None = None


class Record(NamedTuple):
    """A row of a source: the bytes of a file and its label or text, or what is wrong with it;
    `done` counts the bytes that have been read."""

    content: bytes
    target: int | str
    place: str
    done: int
    fault: BadRow | None = None


def target_of(value: Any, labels: Labels, limit: int | None, place: str, column: str) -> int | str:
    """The label or text, checked.

    Args:
        limit: labels that are numbers are below it; None for any.

    Raises:
        BadRow: it is null, out of range or neither a number nor text.
    """
    if labels.kind == "texts":
        if isinstance(value, str):
            return value
        raise wrong(place, f"column '{column}' is {named_kind(value)}, not text")
    if labels.kind == "names":
        if isinstance(value, str) and value:
            return value
        what = "empty text" if value == "" else named_kind(value)
        raise wrong(place, f"column '{column}' is {what}, not the name of a class")
    limit = len(labels.names) if labels.names is not None else limit
    if isinstance(value, bool) or not isinstance(value, int):
        what = "null" if value is None else f"{value!r}"
        raise wrong(place, f"column '{column}' is {what}, not the number of a class")
    if value < 0 or (limit is not None and value >= limit):
        allowed = "0 and above" if limit is None else f"0 to {limit - 1}"
        raise wrong(place, f"column '{column}' is {value}; allowed: {allowed}")
    return value


def wrong(place: str, what: str) -> BadRow:
    """The error for a row with a wrong value."""
    return BadRow(
        f"{place}: {what}; fix or remove the row, or skip all such rows with data.bad_rows=skip"
    )


def bad_file(place: str, noun: str, what: str) -> BadRow:
    """The error for a picture or recording that cannot be decoded."""
    return BadRow(
        f"{place}: the {noun} {what}; fix or remove it, or skip all such rows with "
        f"data.bad_rows=skip"
    )


def no_column(
    place: str, wanted: Wanted, key: Literal["column", "label", "text"], there: list[str]
) -> UserError:
    """The error for a column that is not there, with the one that is probably meant."""
    name = wanted.column if key == "column" else wanted.target
    usual = [each for each in USUAL[wanted.section if key == "column" else key] if each in there]
    near = f" Did you mean '{usual[0]}'?" if usual else did_you_mean(name, there)
    return UserError(
        f"{place}: no column '{name}'; columns: {', '.join(there) or 'none'}. Set "
        f"data.{wanted.section}.{key} to one of them.{near}"
    )
