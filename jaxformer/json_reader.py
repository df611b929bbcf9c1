"""JSON that others wrote, or that was damaged since: parsed, or refused with the place."""

import json
import sys
from collections.abc import Callable
from typing import Any

from jaxformer.schema import UserError

Pairs = list[tuple[str, Any]]


def read_json(
    text: str | bytes, name: str, *, object_of: Callable[[Pairs], Any] | None = None
) -> Any:
    """What a JSON text says; `name` is the file, or what else the text is, for messages.

    Args:
        object_of: makes an object of its pairs, in place of `dict`.

    Raises:
        UserError: no JSON, or no UTF-8; nested too deeply, or an integer too long, for Python.
    """
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        return json.loads(decoded, object_pairs_hook=object_of)
    except (ValueError, RecursionError) as error:
        raise not_json(name, error) from error


def read_json_object(text: str | bytes, name: str) -> dict[str, Any]:
    """As `read_json`, for what must be an object."""
    content = read_json(text, name)
    if not isinstance(content, dict):
        raise UserError(f"{name} is not a JSON object")
    return content


def not_json(name: str, error: ValueError | RecursionError) -> UserError:
    """What to say of what the parser raised."""
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
    return str(error)  # said by `object_of`
