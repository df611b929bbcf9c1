"""Text to token ids and back: what a tokenizer is, and how one is loaded by name."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from jaxformer.data.character_tokenizer import CharacterTokenizer
from jaxformer.data.class_names import ClassNames
from jaxformer.data.huggingface_tokenizer import (
    HuggingFaceTokenizer,
    file_of,
    from_hub,
    is_hub_name,
)
from jaxformer.data.long_text import Part, Text
from jaxformer.data.plain_tokenizers import ByteTokenizer, IdsTokenizer
from jaxformer.data.text_ends import AddBos, read_settings
from jaxformer.errors import UserError, did_you_mean
from jaxformer.paths import locate_path
from jaxformer.run_files import CHARACTERS, CLASSES

MOST_IDS = 2**31 - 1  # ids are int32 on devices


class StreamDecoder(Protocol):
    """Decodes ids one at a time: what `push` and then `finish` give, joined, is `decode(ids)`.

    A piece is held back until it is whole, so no half of a UTF-8 sequence reaches a terminal.
    """

    def push(self, token: int) -> str: ...

    def finish(self) -> str: ...


class Tokenizer(Protocol):
    """Ids are below `vocab_size`; `fingerprint` is a SHA-256 of all that decides the ids.

    `prefix_ids` stand before every text: bos where the tokenizer adds one, else nothing. `bos_id`
    is the token called so, added or not, and None where there is none.
    """

    name: str
    vocab_size: int
    prefix_ids: tuple[int, ...]
    bos_id: int | None
    eos_id: int

    @property
    def fingerprint(self) -> str: ...

    @property
    def specials(self) -> Mapping[str, int]:
        """The special tokens that a text may hold, and their ids."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """int32 ids [length], without bos and eos; special tokens written in the text count."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Like `encode`, for many texts; special tokens in a text are plain text."""
        ...

    def encode_parts(self, texts: Sequence[Text]) -> Iterator[Part]:
        """Like `encode_documents`, in parts: joined, they are the ids of the whole text."""
        ...

    def encode_places(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Like `encode`, for many texts, with the characters [from, to) of each token: [length, 2].

        Tokens that are parts of one character all have the same place.
        """
        ...

    def decode(self, ids: ArrayLike, after: ArrayLike = ()) -> str:
        """The text that `ids` add when they follow the tokens `after`, without special tokens;
        invalid UTF-8 becomes U+FFFD."""
        ...

    def decode_whole(self, ids: ArrayLike) -> str:
        """Like `decode` after nothing, with special tokens."""
        ...

    def count_bytes(self, ids: ArrayLike, after: ArrayLike = ()) -> int:
        """UTF-8 bytes of the text that these ids stand for."""
        ...

    def stream_decoder(self, after: ArrayLike = ()) -> StreamDecoder: ...


def load_tokenizer(name: str, add_bos: AddBos = "auto") -> Tokenizer:
    """`bytes`, `ids:N`, a tokenizer.json file, a folder that holds one, or a name on the Hub; for
    classes, `classes:N`, a classes.json file or a folder that holds one; for texts of recordings, a
    characters.json file as well.

    Args:
        add_bos: whether a beginning of text stands before every text; `auto` is what the
            tokenizer's files say.

    Raises:
        UserError: missing, not a tokenizer, or without an end of text.
    """
    if name == "bytes":
        return ByteTokenizer(add_bos is not False)
    if re.fullmatch(r"ids:[1-9]\d*", name):
        count = int(name.removeprefix("ids:")[:12])
        if count > MOST_IDS:
            raise UserError(f"data.tokenizer '{name}': allowed are ids:1 to ids:{MOST_IDS}")
        return IdsTokenizer(count, add_bos is not False)
    if re.fullmatch(r"classes:[1-9]\d*", name):
        return ClassNames.numbered(int(name.removeprefix("classes:")[:9]))
    path = locate_path(name)
    if (file := _named(path, CLASSES)) is not None:
        return ClassNames.from_file(name, file)
    if (file := _named(path, CHARACTERS)) is not None:
        return CharacterTokenizer.from_file(name, file)
    if path.is_dir():
        path = path / "tokenizer.json"
    elif not path.exists() and is_hub_name(name):
        return from_hub(name, add_bos)
    if not path.is_file():
        folder = path.parent
        siblings = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        raise UserError(
            f"data.tokenizer '{name}': no file {path}; allowed: bytes, ids:N, a tokenizer.json "
            f"file, a folder that holds one, or a name on the Hub."
            f"{did_you_mean(path.name, siblings)}"
        )
    settings = read_settings(name, lambda file: file_of(path.parent, file))
    return HuggingFaceTokenizer(name, path.read_bytes(), settings, add_bos)


def _named(path: Path, name: str) -> Path | None:
    """The file of this name that a path is, or that is in the folder there."""
    file = path if path.name == name else path / name
    return file if file.is_file() else None


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text that a model is to continue: the tokenizer's prefix, unless the text
    begins with it already, and then the text. Only a document has an end of text."""
    ids = tokenizer.encode(text).tolist()
    prefix = list(tokenizer.prefix_ids)
    return ids if ids[: len(prefix)] == prefix else prefix + ids


def source_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """What an encoder reads of each text, int32 [length]: [bos] tokens eos, with bos where the
    tokenizer adds one. Special tokens in a text are plain text."""
    prefix, eos = np.array(tokenizer.prefix_ids, np.int32), np.array([tokenizer.eos_id], np.int32)
    encoded = tokenizer.encode_documents(texts)
    return [np.concatenate([prefix, ids.astype(np.int32), eos]) for ids in encoded]


def start_id(tokenizer: Tokenizer) -> int:
    """The token to continue where there is no text at all: bos, whether or not it is added to
    texts, or else the end of text. lm-evaluation-harness takes the same."""
    if tokenizer.bos_id is not None:
        return tokenizer.bos_id
    return [tokenizer.eos_id, *tokenizer.prefix_ids][-1]
