"""A Hugging Face `tokenizer.json`, from a folder or from the Hub."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from jaxformer.data.long_text import Part, Text, joined
from jaxformer.data.pieces import PieceEncoder
from jaxformer.data.text_ends import AddBos, ends_of, named_tokens, read_settings
from jaxformer.data.text_of_ids import TextOfIds, TextStream
from jaxformer.errors import UserError, did_you_mean
from jaxformer.paths import locate_path

if TYPE_CHECKING:
    import tokenizers


class HuggingFaceTokenizer:
    """A `tokenizer.json`, run by the `tokenizers` library on all cores.

    `settings` are what `read_settings` gives, or empty; `add_bos` overrides what they and the
    post-processor say.
    """

    def __init__(
        self,
        name: str,
        definition: bytes,
        settings: Mapping[str, Any],
        add_bos: AddBos = "auto",
    ) -> None:
        self.name = name
        self.definition = definition
        self.add_bos = add_bos
        self._ordinary = _parse(name, definition)
        self._ordinary.encode_special_tokens = True
        self.prefix_ids, self.bos_id, self.eos_id = ends_of(name, settings, self._ordinary, add_bos)
        self.settings = dict(settings)
        self._with_specials = _parse(name, definition)
        # It would trim spaces off the places of tokens; what it adds is in `prefix_ids`.
        self._with_specials.post_processor = None
        marked = [
            _mark_special(tokenizer, named_tokens(settings).values())
            for tokenizer in (self._ordinary, self._with_specials)
        ]
        self._pieces = PieceEncoder(name, self._ordinary)
        self._pieces_with_specials = PieceEncoder(name, self._with_specials)
        added = self._ordinary.get_added_tokens_decoder()
        self.specials = {token.content: index for index, token in added.items() if token.special}
        self.vocab_size = max(self._ordinary.get_vocab(with_added_tokens=True).values()) + 1
        self._text = TextOfIds(self._ordinary)
        digest = hashlib.sha256(definition)
        bos = " ".join(map(str, self.prefix_ids)) or None
        digest.update(f"bos {bos} eos {self.eos_id}".encode())
        if marked[0]:
            digest.update(json.dumps(marked[0]).encode())
        self.fingerprint = digest.hexdigest()

    @property
    def named_specials(self) -> dict[str, str]:
        """`eos_token` and its like, as a chat template knows them."""
        ends = {"eos_token": self.eos_id}
        if self.bos_id is not None and self.bos_id != self.eos_id:
            ends["bos_token"] = self.bos_id
        named = {key: str(self._ordinary.id_to_token(index)) for key, index in ends.items()}
        return named | named_tokens(self.settings)

    def find(self, file: str) -> Path | None:
        """A file beside tokenizer.json; on the Hub, it is fetched or taken from the cache."""
        path = locate_path(self.name)
        if path.exists():
            return file_of(path if path.is_dir() else path.parent, file)
        return _fetched(self.name, file)

    def encode(self, text: str) -> np.ndarray:
        return joined(self._pieces_with_specials.parts([text]))[0].astype(np.int32)

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        return joined(self.encode_parts(texts))

    def encode_parts(self, texts: Sequence[Text]) -> Iterator[Part]:
        return self._pieces.parts(texts)

    def encode_places(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return self._pieces_with_specials.places(texts)

    def decode(self, ids: ArrayLike, after: ArrayLike = ()) -> str:
        return self._text.of(np.asarray(ids), np.asarray(after))

    def decode_whole(self, ids: ArrayLike) -> str:
        return self._ordinary.decode(np.asarray(ids).tolist(), skip_special_tokens=False)

    def count_bytes(self, ids: ArrayLike, after: ArrayLike = ()) -> int:
        return len(self.decode(ids, after).encode("utf-8"))

    def stream_decoder(self, after: ArrayLike = ()) -> TextStream:
        return TextStream(self._text, np.asarray(after))


def file_of(folder: Path, file: str) -> Path | None:
    return folder / file if (folder / file).is_file() else None


def is_hub_name(name: str) -> bool:
    part = r"[A-Za-z0-9][\w.-]*"
    return not name.endswith(".json") and re.fullmatch(rf"{part}(/{part})?", name) is not None


def from_hub(name: str, add_bos: AddBos) -> HuggingFaceTokenizer:
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
        hf_hub_download(name, "tokenizer_config.json")
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"data.tokenizer '{name}': its tokenizer_config.json cannot be fetched ({error})"
        ) from None
    except EntryNotFoundError:
        pass  # it has none; its other files may suffice
    settings = read_settings(name, lambda file: _fetched(name, file))
    return HuggingFaceTokenizer(name, definition, settings, add_bos)


def _fetched(name: str, file: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except EntryNotFoundError:  # not there, or, without a connection, not fetched before
        return None


def _parse(name: str, definition: bytes) -> "tokenizers.Tokenizer":
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(definition)
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"data.tokenizer '{name}': not a tokenizer.json: {error}") from None
    # Files saved for serving may truncate or pad every text; documents are taken whole.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _mark_special(tokenizer: "tokenizers.Tokenizer", named: Iterable[str]) -> list[str]:
    """Marks as special what the settings name and tokenizer.json does not mark, as transformers
    does, and returns these tokens. A name that is not in the vocabulary gets no id."""
    from tokenizers import AddedToken

    added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    marked = []
    for content in dict.fromkeys(named):
        token = added.get(content)
        if tokenizer.token_to_id(content) is None or (token is not None and token.special):
            continue
        flags = {} if token is None else {"lstrip": token.lstrip, "rstrip": token.rstrip}
        tokenizer.add_special_tokens([AddedToken(content, special=True, normalized=False, **flags)])
        marked.append(content)
    return marked
