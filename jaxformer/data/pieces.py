"""Encodes texts of any length with the `tokenizers` library, in little memory."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from jaxformer.data.long_text import BLOCK, Part, Text, blocks_of, with_next
from jaxformer.data.text_cuts import Piece, TextCuts

if TYPE_CHECKING:
    import tokenizers

# Characters given to the library at once: pieces for all cores. It takes over 100 bytes for each.
CHARACTERS_AT_ONCE = 2**20


class PieceEncoder:
    """Encodes texts in pieces. The ids are those of the whole texts, see `TextCuts`."""

    def __init__(self, name: str, tokenizer: "tokenizers.Tokenizer") -> None:
        self._name, self._tokenizer = name, tokenizer
        self._skipped: dict[str, int] = {"": 0}

    def parts(self, texts: Iterable[Text]) -> Iterator[Part]:
        """uint32 ids; every text has at least one part.

        Raises:
            UserError: see `TextCuts.pieces`.
        """
        for pieces in self._rounds(texts):
            for ids, (_, ends) in zip(self._ids(pieces), pieces, strict=True):
                yield Part(ids, ends)

    def places(self, texts: Iterable[Text]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """int32 ids of every text, and the characters [from, to) of each, [length, 2]."""
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for pieces in self._rounds(texts):
            for part, (_, ends) in zip(self._ids_and_places(pieces), pieces, strict=True):
                found.append(part)
                if ends:
                    ids, places = zip(*found, strict=True)
                    yield np.concatenate(ids), np.concatenate(places)
                    found = []

    def _rounds(self, texts: Iterable[Text]) -> Iterator[list[tuple[Piece, bool]]]:
        pieces: list[tuple[Piece, bool]] = []
        size = 0
        for text in texts:
            for piece, following in with_next(self._cut(text)):
                pieces.append((piece, following is None))
                size += len(piece.text)
                if size >= CHARACTERS_AT_ONCE:
                    yield pieces
                    pieces, size = [], 0
        if pieces:
            yield pieces

    def _cut(self, text: Text) -> Iterator[Piece]:
        if isinstance(text, str) and len(text) <= BLOCK:
            yield Piece(0, "", text)
        else:
            yield from self._cuts.pieces(blocks_of(text))

    @cached_property
    def _cuts(self) -> TextCuts:
        return TextCuts(self._name, self._tokenizer)

    def _ids(self, pieces: Sequence[tuple[Piece, bool]]) -> list[np.ndarray]:
        written = [piece.context + piece.text for piece, _ in pieces]
        encodings = self._tokenizer.encode_batch_fast(written, add_special_tokens=False)
        return [
            np.asarray(encoding.ids, np.uint32)[self._skip(piece.context) :]
            for encoding, (piece, _) in zip(encodings, pieces, strict=True)
        ]

    def _ids_and_places(
        self, pieces: Sequence[tuple[Piece, bool]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        written = [piece.context + piece.text for piece, _ in pieces]
        found = []
        encodings = self._tokenizer.encode_batch(written, add_special_tokens=False)
        for encoding, (piece, _) in zip(encodings, pieces, strict=True):
            skip, shift = self._skip(piece.context), piece.start - len(piece.context)
            places = np.asarray(encoding.offsets, np.int64).reshape(-1, 2) + shift
            found.append((np.asarray(encoding.ids, np.int32)[skip:], places[skip:]))
        return found

    def _skip(self, context: str) -> int:
        """How many ids the character before a piece has by itself."""
        if context not in self._skipped:
            encoding = self._tokenizer.encode(context, add_special_tokens=False)
            self._skipped[context] = len(encoding.ids)
        return self._skipped[context]
