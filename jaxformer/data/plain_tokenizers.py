"""Tokenizers that need no vocabulary: the bytes of a text, and ids written as numbers."""

import codecs
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from jaxformer.data.long_text import Part, Text, blocks_of, joined, with_next
from jaxformer.errors import UserError

END_OF_TEXT = "<|endoftext|>"


class ByteTokenizer:
    """Ids 0 to 255 are the bytes of UTF-8, 256 is both the end and the beginning of a text."""

    name = "bytes"
    vocab_size = 257
    bos_id: int | None = 256
    eos_id = 256
    specials: Mapping[str, int] = MappingProxyType({})

    def __init__(self, add_bos: bool = True) -> None:
        self.prefix_ids: tuple[int, ...] = (self.eos_id,) if add_bos else ()

    @property
    def fingerprint(self) -> str:
        ends = "bos and eos" if self.prefix_ids else "eos"
        text = f"jaxformer bytes: 0-255 bytes, 256 {ends}"
        return hashlib.sha256(text.encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        return joined(self.encode_parts(texts))

    def encode_parts(self, texts: Sequence[Text]) -> Iterator[Part]:
        for text in texts:
            for block, following in with_next(blocks_of(text)):
                yield Part(np.frombuffer(block.encode("utf-8"), np.uint8), following is None)

    def encode_places(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for text in texts:
            sizes = np.diff(byte_offsets(text))
            first = np.repeat(np.arange(len(text)), sizes)
            yield self.encode(text), np.stack([first, first + 1], axis=1)

    def decode(self, ids: ArrayLike, after: ArrayLike = ()) -> str:
        return self._bytes(ids).decode("utf-8", errors="replace")

    def decode_whole(self, ids: ArrayLike) -> str:
        ends = np.flatnonzero(np.asarray(ids) == self.eos_id)
        return END_OF_TEXT.join(self.decode(part) for part in np.split(np.asarray(ids), ends))

    def count_bytes(self, ids: ArrayLike, after: ArrayLike = ()) -> int:
        return len(self._bytes(ids))

    def stream_decoder(self, after: ArrayLike = ()) -> "_ByteStream":
        return _ByteStream()

    def _bytes(self, ids: ArrayLike) -> bytes:
        array = np.asarray(ids).reshape(-1)
        return array[array < 256].astype(np.uint8).tobytes()


class _ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if token < 256 else ""

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class IdsTokenizer:
    """Ids below N for tasks without text: written as numbers, `3 0 12`. The last ends a text."""

    specials: Mapping[str, int] = MappingProxyType({})

    def __init__(self, vocab_size: int, add_bos: bool = True) -> None:
        self.name = f"ids:{vocab_size}"
        self.vocab_size = vocab_size
        self.eos_id = vocab_size - 1
        self.bos_id: int | None = self.eos_id
        self.prefix_ids: tuple[int, ...] = (self.eos_id,) if add_bos else ()
        text = f"jaxformer {self.name}" + ("" if add_bos else " without bos")
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        return next(self.encode_places([text]))[0]

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        return joined(self.encode_parts(texts))

    def encode_parts(self, texts: Sequence[Text]) -> Iterator[Part]:
        for text in texts:
            begun = ""  # a number that may continue in the next block
            for block, following in with_next(blocks_of(text)):
                written = begun + block
                end = 1 + max(map(written.rfind, " \n")) if following else len(written)
                begun = written[end:]
                yield Part(self.encode(written[:end]), following is None)

    def encode_places(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for text in texts:
            words = list(re.finditer(r"\S+", text))
            wrong = [word[0] for word in words if not self._has(word[0])]
            if wrong:
                raise UserError(
                    f"'{wrong[0]}' is not a token of {self.name}; allowed: numbers from 0 to "
                    f"{self.vocab_size - 1}, separated by spaces"
                )
            ids = np.array([int(word[0]) for word in words], np.int32)
            yield ids, np.array([word.span() for word in words], np.int64).reshape(-1, 2)

    def _has(self, word: str) -> bool:
        return word.isdecimal() and int(word) < self.vocab_size

    def decode(self, ids: ArrayLike, after: ArrayLike = ()) -> str:
        numbers = [str(number) for number in np.asarray(ids).reshape(-1)]
        return " ".join(["", *numbers] if numbers and np.size(after) else numbers)

    def decode_whole(self, ids: ArrayLike) -> str:
        return self.decode(ids)

    def count_bytes(self, ids: ArrayLike, after: ArrayLike = ()) -> int:
        return len(self.decode(ids, after))

    def stream_decoder(self, after: ArrayLike = ()) -> "_IdsStream":
        return _IdsStream(bool(np.size(after)))


class _IdsStream:
    def __init__(self, begun: bool) -> None:
        self._begun = begun

    def push(self, token: int) -> str:
        piece = f" {token}" if self._begun else str(token)
        self._begun = True
        return piece

    def finish(self) -> str:
        return ""


def byte_offsets(text: str) -> np.ndarray:
    """Where each character begins in the UTF-8 of `text`, and its end: [characters + 1]."""
    code = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (code > 0x7F) + (code > 0x7FF) + (code > 0xFFFF)
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
