"""Overrides `key.path=value` on the data of a configuration file, before it is validated."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jaxformer.errors import UserError, shorten
from jaxformer.schema.tree import fields_of, item_type, select
from jaxformer.schema.yaml_reader import read_yaml


def apply_overrides(data: dict[str, Any], overrides: Sequence[str], schema: type[BaseModel]) -> Any:
    """The data with the overrides applied in order; the given data is not changed.

    A section that the file leaves out starts as the schema's default does, so that
    `optimizer.b1=0.8` needs no `optimizer.kind`. Validation checks whether the keys exist.

    Raises:
        UserError: no `=`, a value that is not YAML, or a path through neither section nor list.
    """
    for override in overrides:
        path, value = parse_override(override)
        data = _put(data, schema, (), path, value, override)
    return data


def parse_override(override: str) -> tuple[tuple[str, ...], Any]:
    """`train.steps=10` → (("train", "steps"), 10)."""
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise UserError(f"'{shorten(override)}' is not an override; allowed: key.path=value")
    if not text.strip():
        raise UserError(f"{shorten(override)} has no value; write {key}=null for none")
    try:
        return path, read_yaml(text, "its value").data
    except UserError as error:
        mend = f"put text in quotes: {key}='\"...\"'"
        raise UserError(f"override {shorten(override)}: {error}; {mend}") from error


def _put(
    node: Any,
    annotation: Any,
    done: tuple[str, ...],
    rest: tuple[str, ...],
    value: Any,
    override: str,
) -> Any:
    if not rest:
        return value
    head, place = rest[0], ".".join(done)
    if isinstance(node, list):
        if head not in map(str, range(len(node))):
            raise UserError(
                f"override {shorten(override)}: {place} is a list of {len(node)}, its items are 0 "
                f"to {len(node) - 1}, not '{shorten(head)}'; to change its length give it whole, "
                f"{place}=[...]"
            )
        index = int(head)
        item = _put(node[index], item_type(annotation), (*done, head), rest[1:], value, override)
        return [*node[:index], item, *node[index + 1 :]]
    section = {} if node is None else node
    if not isinstance(section, dict):
        raise UserError(
            f"override {shorten(override)}: {place} is {shorten(repr(section))}, which has no key "
            f"'{head}'"
        )
    schema = select(annotation, section.get("kind"))
    field = fields_of(schema).get(head) if schema else None
    child = section[head] if head in section else _start_of(field)
    inner = field.annotation if field else None
    return {**section, head: _put(child, inner, (*done, head), rest[1:], value, override)}


def _start_of(field: FieldInfo | None) -> Any:
    """What an override of a missing key starts from: the default, with its own keys left out."""
    return None if field is None or field.is_required() else _skeleton(field.default)


def _skeleton(default: Any) -> Any:
    if isinstance(default, BaseModel):
        kind = getattr(default, "kind", None)
        return {} if kind is None else {"kind": kind}
    return [_skeleton(item) for item in default] if isinstance(default, tuple) else default
