"""The kinds of data: which keys of `data` each of them has, and which sources and tokenizers."""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from jaxformer.errors import did_you_mean
from jaxformer.schema.explanations import show

DataKind = Literal["text", "images", "audio", "pairs"]
MEDIA: tuple[DataKind, ...] = ("images", "audio")  # which are decoded into stores of their own
CLASSES = "classes"
CHARACTERS = "characters"
NUMBERED = re.compile(r"classes:[1-9]\d{0,8}")  # classes:N

HUB = "hf:NAME[/CONFIG][@REVISION][:SPLIT]"
IMAGE_SOURCES = f"parquet:GLOB, {HUB}, imagefolder:FOLDER, webdataset:GLOB"
AUDIO_SOURCES = f"parquet:GLOB, {HUB}, audiofolder:FOLDER, webdataset:GLOB"
WITH_COLUMNS = f"jsonl:GLOB, parquet:GLOB, arrayrecord:GLOB, webdataset:GLOB, {HUB}"
PAIR_SOURCES = f"{WITH_COLUMNS}, store:PLACE"
# Keys of `data` that only text has, and those that pairs of texts have, too.
OF_TEXT = ("task", "format", "column")
OF_TEXTS = (
    "add_bos",
    "invalid_utf8",
    "missing_text",
    "min_chars",
    "max_chars",
    "deduplicate",
    "cache_bytes",
)


class _Kind(NamedTuple):
    sources: str  # in words
    source_kinds: tuple[str, ...]
    example: str  # of its section of `data`, which has its own keys
    columns: str  # the keys of that section that name columns, in words


# Their sections have their names.
KINDS: dict[str, _Kind] = {
    "images": _Kind(
        IMAGE_SOURCES,
        ("parquet", "hf", "imagefolder", "webdataset"),
        "{size: [HEIGHT, WIDTH]}",
        "images.column, and images.label or images.text",
    ),
    "audio": _Kind(
        AUDIO_SOURCES,
        ("parquet", "hf", "audiofolder", "webdataset"),
        "{samples_per_place: 640, text: COLUMN}",
        "audio.column, and audio.text or audio.label",
    ),
    "pairs": _Kind(
        PAIR_SOURCES,
        ("jsonl", "parquet", "arrayrecord", "webdataset", "hf", "store"),
        "{source: COLUMN, target: COLUMN}",
        "pairs.source and pairs.target",
    ),
}


def names_classes(tokenizer: str) -> bool:
    """Whether it is `classes` or `classes:N`, which are no files."""
    return tokenizer == CLASSES or tokenizer.startswith(f"{CLASSES}:")


def with_defaults(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section as a file gives it, with the defaults that depend on its kind."""
    if data.get("kind") not in MEDIA or data.get("tokenizer") is not None:
        return data
    section = data.get(str(data["kind"]))
    has_text = isinstance(section, Mapping) and section.get("text") is not None
    return data if has_text else {**data, "tokenizer": CLASSES}


def fault_of_text(data: Any) -> str | None:
    """What is wrong with a section of kind text; None if nothing is."""
    for name in KINDS:
        if getattr(data, name) is not None:
            return f"{name} is given, but kind is text; give kind: {name}, or leave it out"
    return _fault_of_text_tokenizer(data)


def fault_of_pairs(data: Any) -> str | None:
    """What is wrong with a section of kind pairs; None if nothing is."""
    return (
        _fault_of_keys(data, OF_TEXT)
        or _fault_of_sections(data)
        or _fault_of_text_tokenizer(data)
        or _fault_of_sources(data)
    )


def fault_of_media(data: Any) -> str | None:
    """What is wrong with a section of kind images or audio; None if nothing is."""
    fault = _fault_of_keys(data, OF_TEXT + OF_TEXTS) or _fault_of_sections(data)
    if fault is not None:
        return fault
    of_text = getattr(data, data.kind).text is not None
    fault = _fault_of_tokenizer(data) if of_text else _fault_of_classes(data)
    return fault or _fault_of_sources(data) or _fault_of_places(data)


def _fault_of_keys(data: Any, others: tuple[str, ...]) -> str | None:
    for key in others:
        if (value := getattr(data, key)) != type(data).model_fields[key].default:
            said = getattr(value, "kind", value)
            shown = said if isinstance(said, str) else show(said)
            return f"{key} is {shown}, but kind is {data.kind}, and only text has it; leave it out"
    return None


def _fault_of_sections(data: Any) -> str | None:
    for name, kind in KINDS.items():
        given = getattr(data, name) is not None
        if name == data.kind and not given:
            return f"{name} is missing, but kind is {name}; give at least {name}: {kind.example}"
        if name != data.kind and given:
            return f"{name} is given, but kind is {data.kind}; leave one of them out"
    return None


def _fault_of_text_tokenizer(data: Any) -> str | None:
    if names_classes(data.tokenizer) or data.tokenizer == CHARACTERS:
        kind = "audio" if data.tokenizer == CHARACTERS else "images"
        return (
            f"tokenizer is {data.tokenizer}, but kind is {data.kind}; give kind: {kind}, or a "
            f"tokenizer of text, such as bytes"
        )
    return None


def _fault_of_tokenizer(data: Any) -> str | None:
    tokenizer, needs_end = data.tokenizer, data.kind == "images"
    refused = ("ids:", CHARACTERS) if needs_end else ("ids:",)
    if names_classes(tokenizer) or tokenizer.startswith(refused):
        characters = "" if needs_end else "characters, "
        return (
            f"tokenizer is {tokenizer}, but {data.kind}.text has texts; allowed: bytes, "
            f"{characters}a tokenizer.json file, or a Hub name"
        )
    return None


def _fault_of_classes(data: Any) -> str | None:
    tokenizer = data.tokenizer
    allowed = "allowed: classes, classes:N for labels from 0 to N - 1, or a classes.json file"
    if names_classes(tokenizer):
        if tokenizer == CLASSES or NUMBERED.fullmatch(tokenizer):
            return None
        return f"tokenizer is {tokenizer}; {allowed}"
    if tokenizer in ("bytes", CHARACTERS) or tokenizer.startswith("ids:"):
        what = "kind is images" if data.audio is None else "audio.label has classes"
        return f"tokenizer is {tokenizer}, but {what}; {allowed}"
    return None


def _fault_of_sources(data: Any) -> str | None:
    kind = KINDS[data.kind]
    if data.source == "builtin:python":
        return f"source is missing, but kind is {data.kind}; give one of {kind.sources}"
    entries = [*data.sources, *([data.held_out] if data.held_out else [])]
    for entry in entries:
        found = entry.source.partition(":")[0]
        if found not in kind.source_kinds or not entry.source.partition(":")[2]:
            near = did_you_mean(found, kind.source_kinds)
            return f"source '{entry.source}': kind is {data.kind}; allowed: {kind.sources}.{near}"
        for key in ("format", "column"):
            if getattr(entry, key) is not None:
                return (
                    f"source '{entry.source}' has {key} {getattr(entry, key)}, but kind is "
                    f"{data.kind}; leave it out, and give {kind.columns}"
                )
    return None


def _fault_of_places(data: Any) -> str | None:
    for number, stage in enumerate(data.stages or ()):
        if stage.sequence_length is not None:
            return (
                f"stages.{number}.sequence_length is {stage.sequence_length}, but kind is "
                f"{data.kind}, whose rows have one size; leave it out"
            )
    if data.store_dir is not None and "://" in data.store_dir:
        return (
            f"store_dir is {data.store_dir}, but {data.kind} are read from a disk; give a folder "
            f"of this machine, or leave it out"
        )
    return None
