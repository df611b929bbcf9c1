"""Text to token ids and back: plain bytes, or a Hugging Face `tokenizer.json`."""

import codecs
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from jaxformer.schema import UserError, did_you_mean

if TYPE_CHECKING:
    import tokenizers

KNOWN_BOS = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>")
KNOWN_EOS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")


class StreamDecoder(Protocol):
    """Decodes ids one at a time: what `push` and then `finish` give, joined, is `decode(ids)`.

    A piece is held back until it is whole, so no half of a UTF-8 sequence reaches a terminal.
    """

    def push(self, token: int) -> str: ...

    def finish(self) -> str: ...


class Tokenizer(Protocol):
    """Ids are below `vocab_size`; `fingerprint` is a SHA-256 of all that decides the ids."""

    name: str
    vocab_size: int
    bos_id: int
    eos_id: int
    fingerprint: str

    @property
    def specials(self) -> Mapping[str, int]:
        """The special tokens that a text may hold, and their ids."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """int32 ids [length], without bos and eos; special tokens written in the text count."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Like `encode`, many at once, and special tokens in the text are plain text."""
        ...

    def encode_places(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Like `encode`, many at once, with the characters [from, to) of each token: [length, 2].

        Tokens that are parts of one character have all the same place.
        """
        ...

    def decode(self, ids: ArrayLike) -> str:
        """The text without special tokens; invalid UTF-8 becomes U+FFFD."""
        ...

    def decode_whole(self, ids: ArrayLike) -> str:
        """Like `decode`, with special tokens."""
        ...

    def count_bytes(self, ids: ArrayLike) -> int:
        """UTF-8 bytes of the text that these ids stand for."""
        ...

    def stream_decoder(self) -> StreamDecoder: ...


class ByteTokenizer:
    """Ids 0 to 255 are the bytes of UTF-8, 256 is the end of text and its beginning."""

    name = "bytes"
    vocab_size = 257
    bos_id = 256
    eos_id = 256
    fingerprint = hashlib.sha256(b"jaxformer bytes: 0-255 bytes, 256 bos and eos").hexdigest()
    specials: Mapping[str, int] = MappingProxyType({})

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-8"), np.uint8) for text in texts]

    def encode_places(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for text in texts:
            sizes = np.diff(byte_offsets(text))
            first = np.repeat(np.arange(len(text)), sizes)
            yield self.encode(text), np.stack([first, first + 1], axis=1)

    def decode(self, ids: ArrayLike) -> str:
        return self._bytes(ids).decode("utf-8", errors="replace")

    def decode_whole(self, ids: ArrayLike) -> str:
        ends = np.flatnonzero(np.asarray(ids) == self.eos_id)
        return KNOWN_EOS[0].join(self.decode(part) for part in np.split(np.asarray(ids), ends))

    def count_bytes(self, ids: ArrayLike) -> int:
        return len(self._bytes(ids))

    def stream_decoder(self) -> StreamDecoder:
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
    """Ids below N for tasks that have no text: written as numbers, `3 0 12`. The last one ends."""

    specials: Mapping[str, int] = MappingProxyType({})

    def __init__(self, vocab_size: int) -> None:
        self.name = f"ids:{vocab_size}"
        self.vocab_size = vocab_size
        self.bos_id = self.eos_id = vocab_size - 1
        self.fingerprint = hashlib.sha256(f"jaxformer {self.name}".encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        return next(self.encode_places([text]))[0]

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def encode_places(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for text in texts:
            words = list(re.finditer(r"\S+", text))
            wrong = [word[0] for word in words if not self._has(word[0])]
            if wrong:
                raise UserError(
                    f"'{wrong[0]}' is no token of {self.name}; allowed: numbers from 0 to "
                    f"{self.vocab_size - 1} between spaces"
                )
            ids = np.array([int(word[0]) for word in words], np.int32)
            yield ids, np.array([word.span() for word in words], np.int64).reshape(-1, 2)

    def _has(self, word: str) -> bool:
        return word.isdecimal() and int(word) < self.vocab_size

    def decode(self, ids: ArrayLike) -> str:
        return " ".join(str(number) for number in np.asarray(ids).reshape(-1))

    def decode_whole(self, ids: ArrayLike) -> str:
        return self.decode(ids)

    def count_bytes(self, ids: ArrayLike) -> int:
        return len(self.decode(ids))

    def stream_decoder(self) -> StreamDecoder:
        return _IdsStream()


class _IdsStream:
    def push(self, token: int) -> str:
        return f"{token} "

    def finish(self) -> str:
        return ""


class HuggingFaceTokenizer:
    """A `tokenizer.json`, run by the `tokenizers` library on all cores.

    `config` is the content of `tokenizer_config.json`, or empty. A missing beginning of text is the
    end of text.
    """

    def __init__(self, name: str, definition: bytes, config: dict[str, Any]) -> None:
        self.name = name
        self.config = config
        self._ordinary = _parse(name, definition)
        self._ordinary.encode_special_tokens = True
        self._with_specials = _parse(name, definition)
        # It would add nothing here, and cut spaces off the places of tokens.
        self._with_specials.post_processor = None
        added = self._ordinary.get_added_tokens_decoder()
        self.specials = {token.content: index for index, token in added.items() if token.special}
        ids = self._ordinary.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values()) + 1
        self.eos_id = _special_id(name, "eos_token", config, KNOWN_EOS, ids)
        has_bos = config.get("bos_token") is not None or any(token in ids for token in KNOWN_BOS)
        self.bos_id = (
            _special_id(name, "bos_token", config, KNOWN_BOS, ids) if has_bos else self.eos_id
        )
        digest = hashlib.sha256(definition)
        digest.update(f"bos {self.bos_id} eos {self.eos_id}".encode())
        self.fingerprint = digest.hexdigest()

    @property
    def named_specials(self) -> dict[str, str]:
        """`eos_token` and its like, as a chat template knows them."""
        ends = {"eos_token": self.eos_id}
        if self.bos_id != self.eos_id:
            ends["bos_token"] = self.bos_id
        named = {key: str(self._ordinary.id_to_token(index)) for key, index in ends.items()}
        for key, token in self.config.items():
            content = token.get("content") if isinstance(token, dict) else token
            if key.endswith("_token") and isinstance(content, str):
                named[key] = content
        return named

    def find(self, file: str) -> Path | None:
        """A file beside tokenizer.json; on the Hub, it is fetched, or taken from what was."""
        path = Path(self.name).expanduser()
        if path.exists():
            beside = (path if path.is_dir() else path.parent) / file
            return beside if beside.is_file() else None
        return _fetched(self.name, file)

    def encode(self, text: str) -> np.ndarray:
        return np.asarray(self._with_specials.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._ordinary.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, np.uint32) for encoding in encodings]

    def encode_places(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for encoding in self._with_specials.encode_batch(list(texts), add_special_tokens=False):
            yield np.asarray(encoding.ids, np.int32), np.asarray(encoding.offsets).reshape(-1, 2)

    def decode(self, ids: ArrayLike) -> str:
        return self._ordinary.decode(np.asarray(ids).reshape(-1).tolist())

    def decode_whole(self, ids: ArrayLike) -> str:
        return self._ordinary.decode(np.asarray(ids).tolist(), skip_special_tokens=False)

    def count_bytes(self, ids: ArrayLike) -> int:
        return len(self.decode(ids).encode("utf-8"))

    def stream_decoder(self) -> StreamDecoder:
        return _HuggingFaceStream(self._ordinary)


class _HuggingFaceStream:
    def __init__(self, tokenizer: "tokenizers.Tokenizer") -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._written = 0

    def push(self, token: int) -> str:
        self._ids.append(token)
        piece = self._stream.step(self._tokenizer, token) or ""
        self._written += len(piece)
        return piece

    def finish(self) -> str:
        return self._tokenizer.decode(self._ids)[self._written :]


def byte_offsets(text: str) -> np.ndarray:
    """Where each character begins in the UTF-8 of `text`, and its end: [characters + 1]."""
    code = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (code > 0x7F) + (code > 0x7FF) + (code > 0xFFFF)
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def load_tokenizer(name: str) -> Tokenizer:
    """`bytes`, `ids:N`, a tokenizer.json file, a folder that holds one, or a name on the Hub.

    Raises:
        UserError: missing, not a tokenizer, or without an end of text.
    """
    if name == "bytes":
        return ByteTokenizer()
    if re.fullmatch(r"ids:[1-9]\d*", name):
        return IdsTokenizer(int(name.removeprefix("ids:")))
    path = Path(name).expanduser()
    if path.is_dir():
        path = path / "tokenizer.json"
    elif not path.exists() and _is_hub_name(name):
        return _from_hub(name)
    if not path.is_file():
        folder = path.parent
        siblings = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        raise UserError(
            f"data.tokenizer '{name}': no file {path}; allowed: bytes, ids:N, a tokenizer.json "
            f"file, a folder that holds one, or a name on the Hub."
            f"{did_you_mean(path.name, siblings)}"
        )
    return HuggingFaceTokenizer(name, path.read_bytes(), _read_config(path.parent, name))


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuses a tokenizer whose ids the model's embedding does not hold.

    Raises:
        UserError: `vocab_size`, the model's, is smaller than the tokenizer's.
    """
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"data.tokenizer '{tokenizer.name}' has {tokenizer.vocab_size} ids, but "
            f"model.vocab_size is {vocab_size}; make it at least {tokenizer.vocab_size}, or leave "
            f"it out"
        )


def _is_hub_name(name: str) -> bool:
    part = r"[A-Za-z0-9][\w.-]*"
    return not name.endswith(".json") and re.fullmatch(rf"{part}(/{part})?", name) is not None


def _from_hub(name: str) -> Tokenizer:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        definition = Path(hf_hub_download(name, "tokenizer.json")).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(
            f"data.tokenizer '{name}': no such file or folder here, and the Hub gave no "
            f"tokenizer.json ({str(error).splitlines()[0]}). Check the name and the connection."
            f"{did_you_mean(name, ['bytes'])}"
        ) from None
    try:
        config = Path(hf_hub_download(name, "tokenizer_config.json"))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"data.tokenizer '{name}': its tokenizer_config.json cannot be fetched ({error})"
        ) from None
    except EntryNotFoundError:
        return HuggingFaceTokenizer(name, definition, {})
    return HuggingFaceTokenizer(name, definition, _read_config(config.parent, name))


def _fetched(name: str, file: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except EntryNotFoundError:  # not there, or, without a connection, not fetched before
        return None


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"data.tokenizer '{name}': {file} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"data.tokenizer '{name}': {file} is not a JSON object")
    return config


def _parse(name: str, definition: bytes) -> "tokenizers.Tokenizer":
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(definition)
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"data.tokenizer '{name}': not a tokenizer.json: {error}") from None
    # Files saved for serving may cut or pad every text; a document is to be taken whole.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _special_id(
    name: str, key: str, config: dict[str, Any], known: Sequence[str], ids: dict[str, int]
) -> int:
    """From tokenizer_config.json, where a token is a text or an object; else by known names."""
    token = config.get(key)
    token = token.get("content") if isinstance(token, dict) else token
    if token is None:
        token = next((candidate for candidate in known if candidate in ids), None)
    if token is None:
        raise UserError(
            f"data.tokenizer '{name}': no {key} in tokenizer_config.json, and none of "
            f"{', '.join(known)} in the vocabulary; name it in tokenizer_config.json"
        )
    if token not in ids:
        raise UserError(
            f"data.tokenizer '{name}': tokenizer_config.json names {key} '{token}', which is not "
            f"in the vocabulary"
        )
    return ids[token]
