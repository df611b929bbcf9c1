"""The JSON schema of a configuration file, for editors."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from jaxformer.config import Config
from jaxformer.reading import read_text
from jaxformer.schema.kinds import PLACEHOLDER, Kind

Mode = Literal["validation", "serialization"]


def json_schema() -> str:
    """The schema of `Config` as text (JSON Schema, draft 2020-12)."""
    kinds = sorted(Kind.__subclasses__(), key=lambda each: each.__name__)  # however imported
    members = {each: each.registered() for each in kinds if each.registered()}
    of_members: list[tuple[type[BaseModel], Mode]] = [
        (member, "validation") for several in members.values() for member in several
    ]
    places, definitions = models_json_schema([(Config, "validation"), *of_members])
    defined = definitions["$defs"]
    for registry, several in members.items():
        defined[registry.__name__] = {"oneOf": [places[each, "validation"] for each in several]}
    config = defined.pop(Config.__name__)
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **config, "$defs": defined}
    schema = _with_references(schema)
    for name in set(_chosen_by_kind(schema)):
        required = schema["$defs"][name].setdefault("required", [])
        required += ["kind"] if "kind" not in required else []
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _chosen_by_kind(schema: Any) -> Iterator[str]:
    """The definitions among which `kind` chooses, and in which it is therefore required."""
    values: Sequence[Any] = schema if isinstance(schema, list) else ()
    if isinstance(schema, dict):
        values = list(schema.values())
        yield from (choice["$ref"].rpartition("/")[2] for choice in schema.get("oneOf", ()))
    for value in values:
        yield from _chosen_by_kind(value)


def _with_references(schema: Any) -> Any:
    """The schema with each registry's placeholder replaced by a reference to its classes."""
    if isinstance(schema, list):
        return [_with_references(value) for value in schema]
    if not isinstance(schema, dict):
        return schema
    rest = {key: _with_references(value) for key, value in schema.items() if key != PLACEHOLDER}
    return {"$ref": f"#/$defs/{schema[PLACEHOLDER]}"} | rest if PLACEHOLDER in schema else rest


def is_current(path: Path) -> bool:
    """Whether the file at `path` holds the schema of this version."""
    return read_text(path) == json_schema()
