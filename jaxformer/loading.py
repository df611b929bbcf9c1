"""From a YAML file and overrides to a checked `Config`, or to a message with every mistake."""

import difflib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from jaxformer.config import Config
from jaxformer.file_formats import (
    HEAD,
    binary_format_of,
    compression_of,
    encoding_of,
    irregular,
)
from jaxformer.overrides import apply_overrides, parse_override
from jaxformer.paths import is_remote, locate_path
from jaxformer.run_files import CONFIG, in_place, is_run
from jaxformer.schema import Schema, UserError, shorten
from jaxformer.validation import Mistake, dotted, explain, show
from jaxformer.yaml_reader import Document, read_yaml

T = TypeVar("T", bound=Schema)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the configuration file at `path`, put in the overrides, and check the whole.

    That of a run means the directory in which it lies now, and what the run keeps there (see
    `run_files`), whatever was written into it; overrides go over that.

    Args:
        path: a YAML file, whose keys are those of `Config`; or a run directory, for its own.
        overrides: `key.path=value` each, the value in YAML; `model.pattern.0.mixer.window=64`
            reaches into lists, and `optimizer={kind: sgd}` replaces a whole section.

    Raises:
        UserError: with one line for every mistake.
    """
    file = locate_path(path)
    if is_run(file):
        file = file / CONFIG
    if file.name != CONFIG or not is_run(file.parent):
        return load_as(Config, path, overrides)
    folder = file.parent if is_remote(file) else file.parent.resolve()
    given = dict(map(parse_override, overrides))
    if ("run",) in given and ("run", "dir") not in given and "dir" not in (given["run",] or {}):
        # The section is replaced as a whole, and it is still this run's.
        overrides = [*overrides, f"run.dir={json.dumps(str(folder), ensure_ascii=False)}"]
    return load_as(Config, file, overrides, partial(in_place, folder=folder))


def load_as(
    schema: type[T],
    path: str | Path,
    overrides: Sequence[str] = (),
    meaning: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> T:
    """As `load_config`, for a file of any schema; `meaning` is applied to its keys before the
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


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        UserError: no such file (with the nearest name), a folder, unreadable, or not UTF-8.
    """
    if not is_remote(path) and (kind := irregular(path)):
        raise UserError(f"{path} is {kind}; give a file")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist.{_nearest_file(path)}") from error
    except IsADirectoryError as error:
        files = ", ".join(sorted(file.name for file in path.glob("*.yaml"))) or "none"
        raise UserError(f"{path} is a folder; name a file (YAML files in it: {files})") from error
    except (OSError, ValueError) as error:  # no path of a file has a NUL byte
        reason = getattr(error, "strerror", error)
        raise UserError(f"{str(path)!r} cannot be read: {reason}") from error
    return _decoded(content, path)


def _decoded(content: bytes, path: Path) -> str:
    """UTF-8, with or without a byte order mark; what else it is, is named."""
    head = content[:HEAD]
    if packed := compression_of(head):
        raise UserError(f"{path} is compressed by {packed}; unpack it, and give the file itself")
    if encoding := encoding_of(head):
        raise UserError(
            f"{path} is {encoding}, by its byte order mark; save it as UTF-8, as with: "
            f"iconv -f {encoding} -t UTF-8 OLD > NEW"
        )
    if kind := binary_format_of(head):
        raise UserError(f"{path} is {kind}, not a text in UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(f"{path} is not UTF-8: byte {error.start} is {byte:#x}") from error


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f" Neither does the folder {path.parent}."
    names = {file.name: file for file in path.parent.iterdir() if file.is_file()}
    nearest = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return (
        f" Did you mean {names[nearest[0]]}?"
        if nearest
        else f" Look into the folder '{path.parent}'."
    )


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
    """Where the key was given: by the last override that says so, or in a line of the file."""
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
