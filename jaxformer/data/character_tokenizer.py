"""A tokenizer whose tokens are the characters of the texts that it was made from."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from jaxformer.data.long_text import Part, Text, blocks_of, joined, with_next
from jaxformer.errors import UserError
from jaxformer.reading import read_text

FORMAT = 1
UNKNOWN = "\ufffd"


class CharacterTokenizer:
    """The ids below n are n characters; n is any other character, which is read back as U+FFFD, and
    n + 1 ends a text.

    Raises:
        UserError: there is no character, or one is there twice.
    """

    specials: Mapping[str, int] = MappingProxyType({})
    prefix_ids: tuple[int, ...] = ()
    bos_id: int | None = None

    def __init__(self, name: str, characters: str) -> None:
        if not characters or len(set(characters)) < len(characters):
            fault = "a character is there twice" if characters else "there is no character"
            raise UserError(f"data.tokenizer '{name}': {fault}; give every character once")
        self.name, self.characters = name, characters
        self._ids = {each: number for number, each in enumerate(characters)}
        self._unknown = len(characters)
        self.eos_id = self._unknown + 1
        self.vocab_size = self.eos_id + 1

    @classmethod
    def from_file(cls, name: str, file: Path) -> "CharacterTokenizer":
        """The characters that `as_json` has, or the user gives.

        Raises:
            UserError: the file is something else.
        """
        try:
            given = json.loads(read_text(file))
        except ValueError as error:
            raise _wrong_file(file, f"is not JSON ({error})") from None
        characters = given.get("characters") if isinstance(given, dict) else None
        if not isinstance(characters, str):
            raise _wrong_file(file, "has no text of characters")
        return cls(name, characters)

    def as_json(self) -> str:
        """The text of a characters.json file."""
        given = {"format": FORMAT, "characters": self.characters}
        return json.dumps(given, indent=2, ensure_ascii=False)

    @property
    def fingerprint(self) -> str:
        text = json.dumps(["jaxformer characters", self.characters])
        return hashlib.sha256(text.encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        return np.asarray([self._ids.get(each, self._unknown) for each in text], np.int32)

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        return joined(self.encode_parts(texts))

    def encode_parts(self, texts: Sequence[Text]) -> Iterator[Part]:
        for text in texts:
            for block, following in with_next(blocks_of(text)):
                yield Part(self.encode(block), following is None)

    def encode_places(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for text in texts:
            first = np.arange(len(text))
            yield self.encode(text), np.stack([first, first + 1], axis=1)

    def decode(self, ids: ArrayLike, after: ArrayLike = ()) -> str:
        return "".join(map(self._character, np.asarray(ids, np.int64).reshape(-1).tolist()))

    def decode_whole(self, ids: ArrayLike) -> str:
        return self.decode(ids)

    def count_bytes(self, ids: ArrayLike, after: ArrayLike = ()) -> int:
        return len(self.decode(ids).encode())

    def stream_decoder(self, after: ArrayLike = ()) -> "_CharacterStream":
        return _CharacterStream(self)

    def _character(self, token: int) -> str:
        if token == self.eos_id:
            return ""
        return UNKNOWN if token == self._unknown else self.characters[token]


class _CharacterStream:
    def __init__(self, tokenizer: CharacterTokenizer) -> None:
        self._tokenizer = tokenizer

    def push(self, token: int) -> str:
        return self._tokenizer.decode([token])

    def finish(self) -> str:
        return ""


def _wrong_file(file: Path, fault: str) -> UserError:
    return UserError(f'{file} {fault}; allowed: {{"format": {FORMAT}, "characters": "abc..."}}')
