"""Turn a YAML file and overrides into a checked configuration, or report every mistake."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from jaxformer.errors import UserError, shorten
from jaxformer.paths import locate_path
from jaxformer.reading import read_text
from jaxformer.schema.base import Schema
from jaxformer.schema.explanations import Mistake, dotted, explain, show
from jaxformer.schema.overrides import apply_overrides, parse_override
from jaxformer.schema.yaml_reader import Document, read_yaml

T = TypeVar("T", bound=Schema)


def load_as(
    schema: type[T],
    path: str | Path,
    overrides: Sequence[str] = (),
    meaning: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> T:
    """`load_config` for a file of any schema; `meaning` is applied to its keys before the
    overrides."""
    document = read_yaml(read_text(locate_path(path)), str(path))
    if not isinstance(document.data, dict):
        found = "empty" if document.data is None else show(document.data)
        sections = " and ".join(f"'{name}:'" for name in list(schema.model_fields)[:2])
        raise UserError(f"{path} is {found}; allowed: sections such as {sections}")
    data = apply_overrides(meaning(document.data), overrides, schema)
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise UserError(_message(str(path), error, document, overrides, schema)) from error


def _message(
    name: str,
    error: ValidationError,
    document: Document,
    overrides: Sequence[str],
    schema: type[Schema],
) -> str:
    mistakes = explain(error, schema)
    lines = [mistake.text + _origin(mistake, document, overrides) for mistake in mistakes]
    if len(lines) == 1:
        return f"{name}: {lines[0]}"
    return "\n  ".join([f"{name} has {len(lines)} mistakes:", *lines])


def _origin(mistake: Mistake, document: Document, overrides: Sequence[str]) -> str:
    """Where the key was given: in its last override, or on a line of the file."""
    given = {dotted(parse_override(override)[0]): override for override in overrides}
    for end in range(len(mistake.path), 0, -1):
        if (key := dotted(mistake.path[:end])) in given:
            return f" (given as {shorten(given[key])})"
    line = document.line_of(mistake.path)
    if line is None:
        through = [given[key] for key in given if key.startswith(dotted(mistake.path) + ".")]
        return f" (given as {shorten(through[-1])})" if through else ""
    section = dotted(mistake.path[:-1])
    if kind := given.get(f"{section}.kind"):
        fresh = f"{section}={{kind: {kind.partition('=')[2]}}}"
        return f" (line {line}; {kind} keeps the section's other keys, {fresh} starts it afresh)"
    return f" (line {line})"
