"""Questions about the configuration's classes: what a key holds, and in words, what it allows."""

import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jaxformer.schema.kinds import Kind

_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, however nested, and of a registry; Annotated members that carry
    bounds stay whole."""
    inner = _bare(annotation)
    if isinstance(inner, type) and issubclass(inner, Kind) and inner.registered():
        return inner.registered()
    if get_origin(inner) in (Union, types.UnionType):
        return tuple(leaf for member in get_args(inner) for leaf in alternatives(member))
    return (annotation,)


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def section_classes(annotation: Any) -> tuple[type[BaseModel], ...]:
    """The configuration classes that a value of this type may be."""
    bare = (_bare(leaf) for leaf in alternatives(annotation))
    return tuple(leaf for leaf in bare if isinstance(leaf, type) and issubclass(leaf, BaseModel))


def fields_of(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a class by the keys that a file gives them."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def kinds_of(section: type[BaseModel]) -> tuple[str, ...]:
    """The values of `kind` that select a class; none for a class outside any union."""
    field = section.model_fields.get("kind")
    if field is None or get_origin(field.annotation) is not Literal:
        return ()
    return get_args(field.annotation)


def all_kinds(sections: Sequence[type[BaseModel]]) -> list[str]:
    """The kinds that choose one of these classes."""
    return [kind for section in sections for kind in kinds_of(section)]


def select(annotation: Any, kind: object) -> type[BaseModel] | None:
    """The class of a section of this type: the only one possible, or the one of its `kind`."""
    classes = section_classes(annotation)
    if len(classes) == 1:
        return classes[0]
    return next((section for section in classes if kind in kinds_of(section)), None)


def list_type(annotation: Any) -> Any | None:
    """The list among the alternatives (`tuple[item, ...]`), or None."""
    bare = (_bare(leaf) for leaf in alternatives(annotation))
    return next((leaf for leaf in bare if get_origin(leaf) is tuple), None)


def item_type(annotation: Any) -> Any | None:
    """The type of a list's items, or None if it is not a list."""
    found = list_type(annotation)
    return None if found is None else get_args(found)[0]


def choices(annotation: Any) -> tuple[str, ...]:
    """The words that are allowed: those of every Literal among the alternatives."""
    return tuple(
        value
        for leaf in alternatives(annotation)
        if get_origin(_bare(leaf)) is Literal
        for value in get_args(_bare(leaf))
        if isinstance(value, str)
    )


def describe_field(field: FieldInfo) -> str:
    """What a field allows, in words: `a whole number above 0`, `float32 or bfloat16`."""
    return describe(field.annotation, field.metadata)


def describe(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a type with its bounds allows, in words."""
    if annotation is None:
        return "anything"
    classes = section_classes(annotation)
    words = [
        _describe_leaf(leaf, metadata)
        for leaf in alternatives(annotation)
        if len(classes) < 2 or _bare(leaf) not in classes
    ]
    if len(classes) > 1:
        words.insert(0, f"a section whose kind is {one_of(all_kinds(classes))}")
    return " or ".join(dict.fromkeys(words))


def _describe_leaf(leaf: Any, metadata: Sequence[Any]) -> str:
    if get_origin(leaf) is Annotated:
        leaf, metadata = get_args(leaf)[0], [*get_args(leaf)[1:], *metadata]
    if leaf is type(None):
        return "null"
    if leaf in _TYPE_NAMES:
        return _TYPE_NAMES[leaf] + _describe_bounds(metadata)
    if get_origin(leaf) is Literal:
        return one_of([str(value) for value in get_args(leaf)])
    if get_origin(leaf) is tuple:
        return f"a list, each item {describe(get_args(leaf)[0])}"
    if get_origin(leaf) is dict or leaf is dict:
        return "a section with names of your own"
    return f"a section with the keys {', '.join(fields_of(leaf))}"


def _describe_bounds(metadata: Sequence[Any]) -> str:
    """` above 0`, ` of at least 2`, ` from 0 to below 1`, from the bounds among the metadata."""
    low = high = ""
    for item in metadata:
        for bound in getattr(item, "metadata", [item]):  # a Field keeps its bounds in a list
            match bound:
                case annotated_types.Gt(gt=value):
                    low = f" above {_number(value)}"
                case annotated_types.Ge(ge=value):
                    low = f" of at least {_number(value)}"
                case annotated_types.Lt(lt=value):
                    high = f" below {_number(value)}"
                case annotated_types.Le(le=value):
                    high = f" of at most {_number(value)}"
    return f"{low} and{high}" if low and high else low + high


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def one_of(words: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
