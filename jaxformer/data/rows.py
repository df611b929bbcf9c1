"""A row of a source: what is read of it, and what happens to one without valid text."""

import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from jaxformer.data.long_text import NotUtf8Error
from jaxformer.errors import UserError, did_you_mean

SURROGATE = re.compile("[\ud800-\udfff]")

# Why a row or document is left out: its text is null or missing, it is not UTF-8, it is no row at
# all, it is shorter than data.min_chars, or longer than data.max_chars.
LeftOut = Literal["missing", "not_utf8", "bad", "short", "long"]


class Policies(NamedTuple):
    """`data.invalid_utf8`, `data.missing_text` and `data.bad_rows`: what happens to a row without
    valid text."""

    invalid_utf8: str = "error"
    missing_text: str = "error"
    bad_rows: str = "error"


class Column(NamedTuple):
    """A column to read, and what its values are: texts, lists, or (None) anything, in a column that
    may be missing. `a.b` is the field b of the column a, unless a column has that very name. `key`
    names it in the configuration."""

    name: str
    holds: type[str] | type[list] | None
    key: str = "data.column"


class Row(NamedTuple):
    """Values of the requested columns, or None where a policy left the row out, for the reason
    `left_out`; `place` names the row, `done` counts how much of the source or unit has been read.
    """

    values: tuple[Any, ...] | None
    place: str
    done: int
    left_out: LeftOut | None = None


class BadRow(UserError):
    """A row that is no object with text in its column; `data.bad_rows` can skip it."""


def row_of(values: tuple[Any, ...], place: str, done: int, policies: Policies) -> Row:
    """The row of values that are present; left out if they are not UTF-8 and the policy says so."""
    decoded = decode_utf8(values, policies.invalid_utf8, place)
    return Row(decoded, place, done, "not_utf8" if decoded is None else None)


def bad_row(error: BadRow, place: str, done: int, policies: Policies) -> Row:
    """The row that is left out because of `error`, or the error itself, as the policy says."""
    if policies.bad_rows == "skip":
        return Row(None, place, done, "bad")
    raise error


def decoded(value: Any, errors: str) -> Any:
    match value:
        case bytes() | memoryview():
            return str(value, "utf-8", errors)
        case str():
            if value.isascii() or not SURROGATE.search(value):
                return value  # not a copy: it may be long
            return value.encode("utf-8", "surrogatepass").decode("utf-8", errors)
        case list() | tuple():
            return type(value)(decoded(item, errors) for item in value)
        case dict():
            return {decoded(key, errors): decoded(item, errors) for key, item in value.items()}
    return value


def decode_utf8(
    value: Any, policy: str, place: str, decode: Callable[[Any, str], Any] = decoded
) -> Any:
    """Decode bytes, or all texts in a value, or what `decode` takes; None means to skip it.

    An escaped lone surrogate is legal JSON but not text: it has no UTF-8 form.

    Raises:
        UserError: something is not UTF-8 and the policy (`data.invalid_utf8`) is `error`.
    """
    try:
        return decode(value, "strict")
    except UnicodeDecodeError as error:
        if policy == "skip":
            return None
        if policy == "replace":
            return decode(value, "replace")
        offset = error.start + (error.before if isinstance(error, NotUtf8Error) else 0)
        raise UserError(
            f"{place}: byte 0x{error.object[error.start]:02x} at offset {offset} is not "
            f"UTF-8. data.invalid_utf8 is 'error'; allowed: error, replace (with U+FFFD), "
            f"skip (the document)"
        ) from None


def wrong_column(place: str, key: str, column: str, columns: Any, inside: str = "") -> UserError:
    """The error for a column that is not among `columns`, or a field that is not among those of the
    column `inside`; `key` named it."""
    names = [str(name) for name in columns]
    listed = ", ".join(names) or "none"
    if not inside:
        what = f"no column '{column}'; columns: {listed}"
        return UserError(f"{place}: {what}. Set {key} to one of them.{did_you_mean(column, names)}")
    full = [f"{inside}.{name}" for name in names]
    return UserError(
        f"{place}: column '{inside}' has no field '{column}'; fields: {listed}. Set {key} to "
        f"one of them, as in {inside}.{names[0] if names else 'NAME'}."
        f"{did_you_mean(f'{inside}.{column}', full)}"
    )


def wrong_value(place: str, column: Column, value: object) -> UserError:
    message = (
        f"{place}: column '{column.name}' is {named_kind(value)}, not {holds(column)}; fix or "
        f"remove the row, or skip all such rows with data."
    )
    if value is None:
        return UserError(f"{message}missing_text=skip")
    return BadRow(f"{message}bad_rows=skip")


def holds(column: Column) -> str:
    return "text" if column.holds is str else "a list"


def named_kind(value: object) -> str:
    """What a value of JSON is, in words."""
    if value is None:
        return "null"
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "a string")
