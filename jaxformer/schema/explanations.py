"""Pydantic's errors in the user's words: the key, its value, what is allowed, how to fix it."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from jaxformer.errors import did_you_mean, shorten
from jaxformer.schema.kinds import Kind
from jaxformer.schema.tree import (
    all_kinds,
    alternatives,
    choices,
    describe,
    describe_field,
    fields_of,
    item_type,
    kinds_of,
    list_type,
    one_of,
    section_classes,
)

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Mistake:
    """One mistake: the path of its key, and the sentence about it."""

    path: Path
    text: str


@dataclass(frozen=True)
class _Place:
    """Where an error is: its key path, the class that owns the last key, and the key's type."""

    path: Path
    owner: type[BaseModel]
    annotation: Any
    field: FieldInfo | None = None

    @property
    def allowed(self) -> str:
        return describe(self.annotation) if self.field is None else describe_field(self.field)


def explain(error: ValidationError, schema: type[BaseModel]) -> list[Mistake]:
    """Every mistake that a validation found, in the order of the keys, one per key."""
    found: dict[Path, Mistake] = {}
    for detail in error.errors(include_url=False):
        place = _place(detail["loc"], schema)
        text = _sentence(place, detail)
        path = (*place.path, "kind") if detail["type"].startswith("union_tag") else place.path
        if path not in found or detail["type"] == "too_short":
            found[path] = Mistake(path, text)
    # A list with a wrong item also fails as every other type that its key allows.
    deeper = {path[:cut] for path in found for cut in range(1, len(path))}
    return [mistake for path, mistake in found.items() if path not in deeper]


def _place(location: Sequence[str | int], schema: type[BaseModel]) -> _Place:
    """Follow pydantic's location, which also names the chosen member of every union on the way."""
    place = _Place((), schema, schema)
    for part in location:
        classes = section_classes(place.annotation)
        members = [each for each in alternatives(place.annotation) if each is not type(None)]
        if len(members) == 1 and classes:  # pydantic does not name the section of `section | None`
            field = fields_of(classes[0]).get(str(part))
            annotation = field.annotation if field else None
            place = _Place((*place.path, part), classes[0], annotation, field)
        elif isinstance(part, int):
            place = _Place((*place.path, part), place.owner, item_type(place.annotation))
        elif member := next((c for c in classes if part in kinds_of(c)), None) or (
            classes[0] if len(classes) == 1 and part == classes[0].__name__ else None
        ):
            place = _Place(place.path, place.owner, member, place.field)
        elif "tuple" in part:
            place = _Place(place.path, place.owner, list_type(place.annotation), place.field)
    return place


def _sentence(place: _Place, detail: ErrorDetails) -> str:
    key, value, context = dotted(place.path), detail["input"], detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key. {_allowed_keys(place.owner, str(place.path[-1]))}"
        case "missing":
            return f"{key} is missing; allowed: {place.allowed}"
        case "union_tag_invalid" | "union_tag_not_found":
            kinds = all_kinds(section_classes(place.annotation))
            if detail["type"] == "union_tag_not_found":
                return f"{key}.kind is missing; allowed: {one_of(kinds)}"
            return _refusal(f"{key}.kind", context["tag"], one_of(kinds), kinds)
        case "value_error":
            text = str(context["error"])
            return f"{key}: {text}" if key else text
        case "invalid_key":
            return f"{key}: a key must be text"
        case "too_short":
            length, least = context["actual_length"], context["min_length"]
            return f"{key} is a list of {length}; allowed: {least} or more"
    hint = _hint(value, place)
    return _refusal(key, value, place.allowed, choices(place.annotation)) + hint


def _refusal(key: str, value: Any, allowed: str, words: Sequence[str]) -> str:
    nearest = did_you_mean(value, words) if isinstance(value, str) else ""
    return f"{key} is {show(value)}; allowed: {allowed}.{nearest}"


def _allowed_keys(owner: type[BaseModel], key: str) -> str:
    kinds, keys = kinds_of(owner), sorted(fields_of(owner))
    if key.partition(":")[0] in keys:
        return "In YAML, a space follows the colon of a key."
    whose = f" for kind {kinds[0]}" if len(kinds) == 1 else ""
    hint = _whose_key(owner, key) or did_you_mean(key, keys)
    return f"Allowed{whose}: {', '.join(keys)}.{hint}"


def _whose_key(owner: type[BaseModel], key: str) -> str:
    """Where a key belongs that its section does not have: deeper, or in another kind."""
    for name, field in fields_of(owner).items():
        if any(key in fields_of(each) for each in section_classes(field.annotation)):
            return f" Did you mean '{name}.{key}'?"
    bases = [base for base in owner.__mro__ if issubclass(base, Kind) and base.registered()]
    siblings = bases[0].registered() if bases else ()
    found = [kind for each in siblings if key in fields_of(each) for kind in kinds_of(each)]
    return f" It is a key of kind {' or '.join(found)}." if found else ""


def _hint(value: Any, place: _Place) -> str:
    """How to fix a value of the wrong type, where that is clear."""
    wanted = place.allowed
    if isinstance(value, str) and "number" in wanted and _is_number(value):
        return f" It is text, because of its quotes: write {value.strip()} without them."
    if isinstance(value, str) and "number" in wanted and (number := _python_number(value)):
        return f" Write {number}: numbers are decimal and have no underscores."
    if isinstance(value, float) and "number" in wanted and not math.isfinite(value):
        return " It must be finite."
    if isinstance(value, float) and "whole number" in wanted and value.is_integer():
        return f" Write {int(value)}."
    if isinstance(value, int | float) and "text" in wanted.split(" or "):
        return f' To mean text, put it in quotes: "{show(value)}".'
    return ""


def _is_number(text: str) -> bool:
    return (
        re.fullmatch(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?", text.strip(), re.ASCII) is not None
    )


def _python_number(text: str) -> str | None:
    """The usual spelling of what Python would take for a whole number, such as 1_000 or 0x10."""
    try:
        return str(int(text, 0))
    except ValueError:
        return None


def show(value: Any) -> str:
    """A value as a configuration writes it; `a section` or `a list` in place of those."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case Mapping() | BaseModel():
            return "a section"
        case list() | tuple():
            return "a list"
    return shorten(repr(value))


def dotted(path: Sequence[str | int]) -> str:
    """`("model", "pattern", 0)` → `model.pattern.0`."""
    return ".".join(str(part) for part in path)
