"""Rows of objects: a column is found by its name, and a field of an object in it by `a.b`."""

from collections.abc import Iterator, Sequence
from typing import Any

from jaxformer.data.rows import (
    BadRow,
    Column,
    Policies,
    Row,
    bad_row,
    named_kind,
    row_of,
    wrong_column,
    wrong_value,
)
from jaxformer.errors import UserError

_NOT_THERE = object()


def row_of_object(
    value: Any, place: str, done: int, columns: Sequence[Column], policies: Policies
) -> Row:
    """The row of one object, or a row that is left out.

    Raises:
        UserError: it is no object, or a column is not there, null or holds something else, and the
            policy is `error`.
    """
    try:
        return _row(value, place, done, columns, policies)
    except BadRow as error:
        return bad_row(error, place, done, policies)


def _row(value: Any, place: str, done: int, columns: Sequence[Column], policies: Policies) -> Row:
    values = []
    for column in columns:
        if not isinstance(value, dict):
            raise BadRow(
                f"{place}: {named_kind(value)}, not an object with a column '{column.name}'; fix "
                f"or remove the row, or skip all such rows with data.bad_rows=skip"
            )
        found = _field(value, column.name, place)
        if column.holds is None:
            values.append(None if found is _NOT_THERE else found)
            continue
        if found is None or found is _NOT_THERE:
            if policies.missing_text == "skip":
                return Row(None, place, done, "missing")
            raise (
                wrong_value(place, column, None)
                if found is None
                else _not_there(value, column, column.name, place)
            )
        if not isinstance(found, (str, bytes) if column.holds is str else column.holds):
            raise wrong_value(place, column, found)
        values.append(found)
    return row_of(tuple(values), place, done, policies)


def splits(column: str) -> Iterator[tuple[str, str]]:
    """`a.b.c` as (a.b, c), (a, b.c): what it may mean, if no column has that very name."""
    dot = column.rfind(".")
    while dot > 0:
        yield column[:dot], column[dot + 1 :]
        dot = column.rfind(".", 0, dot)


def _field(value: dict, column: str, place: str) -> Any:
    """The value of a column, None if it or an object around it is null, or _NOT_THERE."""
    if column in value:
        return value[column]
    for name, rest in splits(column):
        if name in value:
            inner = value[name]
            if isinstance(inner, dict):
                return _field(inner, rest, place)
            if inner is None:
                return None
            raise BadRow(
                f"{place}: column '{name}' is {named_kind(inner)}, not an object with a field "
                f"'{rest}'; fix or remove the row, or skip all such rows with data.bad_rows=skip"
            )
    return _NOT_THERE


def _not_there(value: dict, column: Column, sought: str, place: str, inside: str = "") -> UserError:
    """Names the columns at the level at which a column is not found."""
    for name, rest in splits(sought):
        if name in value:
            return _not_there(value[name], column, rest, place, f"{inside}.{name}".lstrip("."))
    return wrong_column(place, column.key, sought, value, inside)
