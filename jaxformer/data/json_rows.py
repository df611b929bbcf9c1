"""Rows of JSON: one per line, or the items of one array that is the whole file."""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from jaxformer.data.lines import lines_of
from jaxformer.data.object_rows import row_of_object
from jaxformer.data.rows import BadRow, Column, Policies, Row, bad_row, decode_utf8
from jaxformer.data.units import FilePart
from jaxformer.data.unpacking import TextFile, open_text
from jaxformer.errors import UserError
from jaxformer.reading import not_json, read_json

BYTES_AT_ONCE = 1 << 16
LONGEST_ESCAPE = 12  # characters: a surrogate pair
_NO_SPACE = re.compile(r"[^ \t\r\n]")


def jsonl_rows(file: FilePart, columns: Sequence[Column], policies: Policies) -> Iterator[Row]:
    """One row per line, or per item of an array; a file that is an array cannot be cut."""
    with open_text(file.place) as text:
        if not text.peek().lstrip().startswith(b"["):
            for line, place, done in lines_of(text, file):
                if line.isspace():
                    continue
                decoded = decode_utf8(line, policies.invalid_utf8, place)
                del line  # it may be long
                yield _row(decoded, place, done, columns, policies)
        elif file.part == 0:
            for number, value in enumerate(_items(text, str(file.place)), start=1):
                done = min(text.done, file.size)
                place = f"{file.place}, row {number}"
                yield row_of_object(value, place, done, columns, policies)


def json_row(
    line: bytes, place: str, done: int, columns: Sequence[Column], policies: Policies
) -> Row:
    """The row of one text of JSON."""
    return _row(decode_utf8(line, policies.invalid_utf8, place), place, done, columns, policies)


def _row(
    line: str | None, place: str, done: int, columns: Sequence[Column], policies: Policies
) -> Row:
    if line is None:
        return Row(None, place, done, "not_utf8")
    try:
        value = read_value(line, place)
    except BadRow as error:
        return bad_row(error, place, done, policies)
    return row_of_object(value, place, done, columns, policies)


def read_value(line: str, place: str) -> Any:
    """Parse a text of JSON.

    Raises:
        BadRow: it is none.
    """
    try:
        return read_json(line, place)
    except UserError as error:
        cause, hint = error.__cause__, ""
        if isinstance(cause, json.JSONDecodeError):
            ends, goes_on = cause.pos >= len(line.rstrip()), cause.msg == "Extra data"
            hint = ", its end" * ends
            if ends or goes_on:
                hint += (
                    ". A row is one line; if objects span or share lines, this gives each its own: "
                    "jq -c . OLD > NEW"
                )
        raise BadRow(
            f"{error}{hint}. Fix or remove the row, or skip all such rows with data.bad_rows=skip"
        ) from None


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
