"""Reads text and JSON files; an error says what is wrong with a file, and where."""

import difflib
import json
import sys
from pathlib import Path
from typing import Any

from jaxformer.errors import UserError
from jaxformer.file_formats import (
    HEAD,
    binary_format_of,
    compression_of,
    encoding_of,
    irregular,
)
from jaxformer.paths import is_remote


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
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", error)
        raise UserError(f"{str(path)!r} cannot be read: {reason}") from error
    return _decoded(content, path)


def _decoded(content: bytes, path: Path) -> str:
    """Decode UTF-8, with or without a byte order mark; an error names any other format."""
    head = content[:HEAD]
    if packed := compression_of(head):
        raise UserError(f"{path} is compressed by {packed}; unpack it, and give the file itself")
    if encoding := encoding_of(head):
        raise UserError(
            f"{path} is {encoding}, by its byte order mark; save it as UTF-8, as with: "
            f"iconv -f {encoding} -t UTF-8 OLD > NEW"
        )
    if kind := binary_format_of(head):
        raise UserError(f"{path} is {kind}, not UTF-8 text")
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
        else f" Look in the folder '{path.parent}'."
    )


def read_json(text: str | bytes, name: str) -> Any:
    """Parse JSON; `name` is the file, or another description of the text, for messages.

    Raises:
        UserError: not JSON or not UTF-8, nested too deeply, or an integer too long for Python.
    """
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        return json.loads(decoded)
    except (ValueError, RecursionError) as error:
        raise not_json(name, error) from error


def read_json_object(text: str | bytes, name: str) -> dict[str, Any]:
    """Like `read_json`, for a text that must be an object."""
    content = read_json(text, name)
    if not isinstance(content, dict):
        raise UserError(f"{name} is not a JSON object")
    return content


def not_json(name: str, error: ValueError | RecursionError) -> UserError:
    """The error to raise for one of the parser's."""
    return UserError(f"{name} is not JSON: {_reason(error)}")


def _reason(error: ValueError | RecursionError) -> str:
    match error:
        case json.JSONDecodeError():
            lines = "\n" in error.doc.strip()
            place = f"line {error.lineno}, column {error.colno}" if lines else error.pos
            return f"{error.msg} at {'' if lines else 'character '}{place}"
        case UnicodeDecodeError():
            return f"byte 0x{error.object[error.start]:02x} at offset {error.start} is not UTF-8"
        case RecursionError():
            return "it is nested too deeply"
    if "integer string conversion" in str(error):
        return f"an integer has more than {sys.get_int_max_str_digits():,} digits"
    return str(error)
