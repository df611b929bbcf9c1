"""Texts that are read in blocks and encoded in parts, so that a long one is never held whole,
as text or as ids."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

# Bytes or characters per block: little memory, and enough of them to keep all cores busy.
BLOCK = 2**15  # never less than a character of four bytes

Item = TypeVar("Item")


class LongText:
    """A text held as its UTF-8: a `str` takes up to four bytes for each character.

    Args:
        errors: "strict", or "replace" for U+FFFD in place of what is not UTF-8.

    Raises:
        UnicodeDecodeError: it is not UTF-8, and `errors` is strict.
    """

    def __init__(self, data: bytes | bytearray, errors: str) -> None:
        self._data, self._errors = data, errors
        self.utf8_bytes = self.characters = 0
        for block in self.blocks():
            self.utf8_bytes += len(block.encode("utf-8"))
            self.characters += len(block)

    def __len__(self) -> int:
        return len(self._data)

    def __str__(self) -> str:
        return self._data.decode("utf-8", self._errors)

    def blocks(self) -> Iterator[str]:
        start = 0
        while start < len(self._data):
            end = _character_end(self._data, start + BLOCK)
            try:
                yield self._data[start:end].decode("utf-8", self._errors)
            except UnicodeDecodeError as error:
                place, length = start + error.start, error.end - error.start
                raise UnicodeDecodeError(
                    "utf-8", bytes(self._data), place, place + length, error.reason
                ) from None
            start = end


Text = str | LongText


class Part(NamedTuple):
    """Ids of a text, or of a part of it, and whether the text ends with it."""

    ids: np.ndarray
    ends: bool


def joined(parts: Iterable[Part]) -> list[np.ndarray]:
    """The ids of every text."""
    texts: list[np.ndarray] = []
    found: list[np.ndarray] = []
    for ids, ends in parts:
        found.append(ids)
        if ends:
            texts.append(np.concatenate(found) if len(found) > 1 else ids)
            found = []
    return texts


def blocks_of(text: Text) -> Iterator[str]:
    """The text in blocks; an empty text has one empty block."""
    if isinstance(text, LongText):
        yield from text.blocks()
        return
    yield text[:BLOCK]
    for start in range(BLOCK, len(text), BLOCK):
        yield text[start : start + BLOCK]


def with_next(items: Iterable[Item]) -> Iterator[tuple[Item, Item | None]]:
    """Each item with the one after it, or None."""
    before: list[Item] = []
    for item in items:
        if before:
            yield before.pop(), item
        before.append(item)
    if before:
        yield before[0], None


def utf8_bytes(text: Text) -> int:
    if isinstance(text, LongText):
        return text.utf8_bytes
    return sum(len(b) if b.isascii() else len(b.encode("utf-8")) for b in blocks_of(text))


def characters(text: Text) -> int:
    return text.characters if isinstance(text, LongText) else len(text)


def _character_end(data: bytes | bytearray, place: int) -> int:
    """`place`, or, where that is inside a character, that character's beginning."""
    for earlier in range(place, place - 4, -1):
        if earlier >= len(data) or data[earlier] & 0xC0 != 0x80:
            return min(earlier, len(data))
    return place
