"""A Hugging Face `tokenizer.json`, from a folder or from the Hub."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from jaxformer.schema import UserError, did_you_mean

if TYPE_CHECKING:
    import tokenizers

KNOWN_BOS = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>")
KNOWN_EOS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")


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

    def stream_decoder(self) -> "_HuggingFaceStream":
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


def is_hub_name(name: str) -> bool:
    part = r"[A-Za-z0-9][\w.-]*"
    return not name.endswith(".json") and re.fullmatch(rf"{part}(/{part})?", name) is not None


def from_hub(name: str) -> HuggingFaceTokenizer:
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
    return HuggingFaceTokenizer(name, definition, read_config(config.parent, name))


def _fetched(name: str, file: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except EntryNotFoundError:  # not there, or, without a connection, not fetched before
        return None


def read_config(folder: Path, name: str) -> dict[str, Any]:
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
