"""Rows of JSON: one per line, or the items of one array that is the whole file."""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxformer.data.rows import (
    Column,
    Policies,
    Row,
    decode_utf8,
    named_kind,
    wrong_column,
    wrong_value,
)
from jaxformer.data.unpacking import TextFile, open_text
from jaxformer.errors import UserError
from jaxformer.reading import not_json, read_json

BYTES_AT_ONCE = 1 << 16
LONGEST_ESCAPE = 12  # characters: a surrogate pair
_NO_SPACE = re.compile(r"[^ \t\r\n]")


def jsonl_rows(
    files: Sequence[Path], columns: Sequence[Column], policies: Policies
) -> Iterator[Row]:
    """One row per line, or per item of an array; `done` counts bytes of the stored files."""
    before = 0
    for file in files:
        with open_text(file) as text:
            read = _array_rows if text.peek().lstrip().startswith(b"[") else _line_rows
            for row in read(text, file, columns, policies):
                yield row._replace(done=before + text.done)
        before += file.stat().st_size


def _line_rows(
    text: TextFile, file: Path, columns: Sequence[Column], policies: Policies
) -> Iterator[Row]:
    number = 0
    while line := text.readline():
        number += 1
        if line.strip():
            place = f"{file}, line {number}"
            decoded = decode_utf8(line, policies.invalid_utf8, place)
            if decoded is None:
                yield Row(None, place, 0)
            else:
                yield _row(_value_of(decoded, place), place, columns, policies)


def _value_of(line: str, place: str) -> Any:
    try:
        return read_json(line, place)
    except UserError as error:
        cause = error.__cause__
        if not isinstance(cause, json.JSONDecodeError):
            raise
        ends, goes_on = cause.pos >= len(line.rstrip()), cause.msg == "Extra data"
        if ends or goes_on:
            raise UserError(
                f"{error}{', its end' if ends else ''}. A row is one line; if objects span or "
                f"share lines, this gives each its own: jq -c . OLD > NEW"
            ) from None
        raise


def _row(value: Any, place: str, columns: Sequence[Column], policies: Policies) -> Row:
    for column in columns:
        if not isinstance(value, dict):
            raise UserError(
                f"{place}: {named_kind(value)}, not an object with a column '{column.name}'"
            )
        if column.holds is None:
            continue
        is_missing = value.get(column.name) is None
        if is_missing and policies.missing_text == "skip":
            return Row(None, place, 0, is_missing=True)
        if column.name not in value:
            raise wrong_column(place, column.name, value)
        if not isinstance(value[column.name], column.holds):
            raise wrong_value(place, column, value[column.name])
    values = tuple(value.get(column.name) for column in columns)
    return Row(decode_utf8(values, policies.invalid_utf8, place), place, 0)


def _array_rows(
    text: TextFile, file: Path, columns: Sequence[Column], policies: Policies
) -> Iterator[Row]:
    for number, value in enumerate(_items(text, str(file)), start=1):
        yield _row(value, f"{file}, row {number}", columns, policies)


def _items(text: TextFile, name: str) -> Iterator[Any]:
    """The items of an array, with little more than the longest one in memory."""
    source, number = _Characters(text), 0
    source.take("[")
    while not source.take("]"):
        if number and not source.take(","):
            found = f"'{source.next()}'" if source.next() else "the end of the file"
            raise UserError(f"{name}, row {number} is not JSON: {found} is where , or ] should be")
        number += 1
        yield source.take_value(f"{name}, row {number}")
    if source.next():
        raise UserError(
            f"{name}: '{source.next()}' follows the end of the array; allowed: one array, or "
            f"one row per line"
        )


class _Characters:
    """A text read in pieces, and how far it is parsed.

    Bytes that are not UTF-8 become lone surrogates, which `decode_utf8` finds in a row's values.
    """

    def __init__(self, text: TextFile) -> None:
        self._text = text
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._parse = json.JSONDecoder().raw_decode
        self._buffer, self._place, self._ended = "", 0, False

    def next(self) -> str:
        """The next character that is not a space, not consumed; nothing at the end."""
        while True:
            found = _NO_SPACE.search(self._buffer, self._place)
            self._place = found.start() if found else len(self._buffer)
            if found or self._ended:
                return self._buffer[self._place : self._place + 1]
            self._fill()

    def take(self, character: str) -> bool:
        """Consume the next character, if it is this one."""
        found = self.next() == character
        self._place += found
        return found

    def take_value(self, place: str) -> Any:
        """Consume a JSON value and return it.

        Raises:
            UserError: there is none.
        """
        self.next()
        while True:
            try:
                value, end = self._parse(self._buffer, self._place)
            except (ValueError, RecursionError) as error:
                if self._ended or not self._is_cut(error):
                    raise not_json(place, error) from None
            else:
                if end < len(self._buffer) or self._ended:  # a number might continue
                    self._place = end
                    return value
            self._fill()

    def _is_cut(self, error: Exception) -> bool:
        """Whether more text may resolve the error, because a piece ends there."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        left = len(self._buffer) - error.pos
        return left < LONGEST_ESCAPE or error.msg.startswith("Unterminated string")

    def _fill(self) -> None:
        """Read at least as much again as is left, so that a long item is not parsed often."""
        rest = self._buffer[self._place :]
        piece = self._text.read(max(BYTES_AT_ONCE, len(rest)))
        self._ended = not piece
        self._buffer, self._place = rest + self._decoder.decode(piece, final=not piece), 0
