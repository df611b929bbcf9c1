"""Texts that are read in blocks and encoded in parts, so that a long one is never held whole,
as text or as ids."""

import codecs
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from jaxformer.errors import UserError

# Bytes or characters per block: little memory, and enough of them to keep all cores busy.
BLOCK = 2**15

Item = TypeVar("Item")


class Bytes(Protocol):
    """A file of UTF-8, at its beginning."""

    def read(self, size: int, /) -> bytes: ...


class NotUtf8Error(UnicodeDecodeError):
    """Bytes in the middle of a text: `object` begins after the first `before` bytes of it."""

    def __init__(self, error: UnicodeDecodeError, before: int) -> None:
        super().__init__(error.encoding, error.object, error.start, error.end, error.reason)
        self.before = before


class LongText:
    """A text that is read from its beginning each time its blocks are asked for, and never held.

    Args:
        opened: opens its UTF-8.
        errors: "strict", or "replace" for U+FFFD in place of what is not UTF-8.
        name: what the text is called in an error.

    Raises:
        NotUtf8Error: it is not UTF-8, and `errors` is strict.
    """

    def __init__(
        self, opened: Callable[[], AbstractContextManager[Bytes]], errors: str, name: str
    ) -> None:
        self._opened, self._errors, self._name = opened, errors, name
        self._characters = self.utf8_bytes = 0
        for block in self._decoded():
            self._characters += len(block)
            self.utf8_bytes += _utf8_bytes(block)

    def __len__(self) -> int:
        return self._characters

    def __str__(self) -> str:
        return "".join(self.blocks())

    def blocks(self) -> Iterator[str]:
        """
        Raises:
            UserError: it is not as long as at first, or no longer UTF-8.
        """
        left = self._characters
        try:
            for block in self._decoded():
                left -= len(block)
                yield block
        except NotUtf8Error:
            raise self._changed() from None
        if left:
            raise self._changed()

    def _changed(self) -> UserError:
        return UserError(f"{self._name} changed while it was read; run again")

    def _decoded(self) -> Iterator[str]:
        decoder, before, ended = codecs.getincrementaldecoder("utf-8")(self._errors), 0, False
        with self._opened() as file:
            while not ended:
                data = file.read(BLOCK)
                begun, ended = len(decoder.getstate()[0]), not data
                try:
                    block = decoder.decode(data, final=ended)
                except UnicodeDecodeError as error:
                    raise NotUtf8Error(error, before - begun) from None
                before += len(data)
                if block:
                    yield block


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
    return text.utf8_bytes if isinstance(text, LongText) else sum(map(_utf8_bytes, blocks_of(text)))


def _utf8_bytes(block: str) -> int:
    return len(block) if block.isascii() else len(block.encode("utf-8"))
