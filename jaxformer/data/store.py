"""The token store: a source tokenised once, memory-mapped ever after.

A store is a folder of files and a manifest:

- `tokens.bin`: every document as [bos] tokens [eos], without bos where the tokenizer adds none, in
  the smallest unsigned type that holds the vocabulary;
- `documents.bin`: int64 [documents + 1], where each document starts in `tokens.bin`;
- `text_bytes.bin`: int64 [documents + 1], UTF-8 bytes of text before each document, without those
  of a document's first token where there is no bos, since nothing predicts it;
- `loss_mask.bin`: for instructions only, bool [tokens], which tokens are in the loss. A document is
  then whatever its format makes of a row, its first token is not in the loss, and the bytes are
  those of the text in the loss;
- `manifest.json`: counts, hashes, the tokenizer and the source.

A store is used only if its manifest is whole, belongs to this source and tokenizer, and agrees with
the files; otherwise it is made anew. `jaxformer.data.prepare` makes it.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from jaxformer.data.documents import Format, Instructions
from jaxformer.data.sources import Source
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.paths import local_path
from jaxformer.schema.base import Schema

FORMAT = 2  # 1 kept byte order marks, and compressed bytes as text
TOKENS, DOCUMENTS, TEXT_BYTES, LOSS_MASK, MANIFEST = (
    "tokens.bin",
    "documents.bin",
    "text_bytes.bin",
    "loss_mask.bin",
    "manifest.json",
)
# Hashing reads about 1.5 GB per second, so larger stores are hashed only by `data inspect`; opening
# one checks its sizes, and every batch its ids.
HASHED_ON_OPENING = 1 << 30


class FileRecord(Schema):
    largest_integer = 2**63 - 1

    bytes: int
    sha256: str


class Manifest(Schema):
    """What a store holds and is made of; for texts, the last two fields are not written."""

    largest_integer = 2**63 - 1

    format: int
    source: str
    identity: str
    source_fingerprint: str
    column: str
    invalid_utf8: str
    missing_text: str
    tokenizer: str
    tokenizer_fingerprint: str
    vocab_size: int
    dtype: str
    documents: int
    empty_documents: int
    skipped_documents: int
    missing_documents: int
    tokens: int
    text_bytes: int
    largest_id: int
    files: dict[str, FileRecord]
    instructions: Instructions | None = None
    learnt_tokens: int | None = None


@dataclass(frozen=True)
class Recipe:
    """What a store is made from; its folder's name is a hash of all that decides the tokens."""

    source: Source
    tokenizer: Tokenizer
    format: Format
    invalid_utf8: str
    missing_text: str
    cache_dir: str

    @property
    def column(self) -> str:
        return ", ".join(column.name for column in self.format.columns)

    @property
    def path(self) -> Path:
        key = [self.source.identity, self.column, self.tokenizer.fingerprint, self.invalid_utf8]
        if self.missing_text != "error":
            key.append(f"missing text: {self.missing_text}")
        if self.format.instructions is not None:
            key.append(self.format.instructions.model_dump_json())
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        return local_path(self.cache_dir).absolute() / digest[:32]


@dataclass(frozen=True)
class TokenStore:
    """An open store. `tokens[offsets[d] : offsets[d + 1]]` is document d."""

    path: Path
    manifest: Manifest
    tokens: np.ndarray  # unsigned [tokens]
    offsets: np.ndarray  # int64 [documents + 1]
    text_bytes: np.ndarray  # int64 [documents + 1]
    loss_mask: np.ndarray | None  # bool [tokens], None: all tokens are in the loss


class UnusableStoreError(Exception):
    """Why a store cannot be trusted."""


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned integer type that holds ids below `vocab_size`."""
    return np.min_scalar_type(vocab_size - 1)


def read_store(recipe: Recipe) -> TokenStore:
    """The store of `recipe`, compared with it and with its own manifest.

    Raises:
        UnusableStoreError: absent, incomplete, altered, of another format, or its text has changed.
    """
    path, manifest = recipe.path, read_manifest(recipe)
    dtypes = {TOKENS: manifest.dtype, DOCUMENTS: "int64", TEXT_BYTES: "int64", LOSS_MASK: "bool"}
    arrays = {name: _map(path / name, dtypes[name], manifest) for name in manifest.files}
    if sum(record.bytes for record in manifest.files.values()) <= HASHED_ON_OPENING:
        verify(path, manifest)
    # Another process may have put a new store in place while the files were opened.
    if read_manifest(recipe) != manifest:
        raise UnusableStoreError("it was replaced while it was opened")
    return TokenStore(
        path,
        manifest,
        arrays[TOKENS],
        arrays[DOCUMENTS],
        arrays[TEXT_BYTES],
        arrays.get(LOSS_MASK),
    )


def read_manifest(recipe: Recipe) -> Manifest:
    """What the store of `recipe` says of itself, compared with the recipe; its files are not read.

    Raises:
        UnusableStoreError: absent, of another format, or its text has changed.
    """
    try:
        manifest = Manifest.model_validate_json(_manifest_text(recipe.path))
    except ValidationError:
        raise UnusableStoreError("its manifest is not one of this version") from None
    _compare(manifest, recipe)
    return manifest


def verify(path: Path, manifest: Manifest) -> None:
    """Compares every file with its SHA-256.

    Raises:
        UnusableStoreError: a file differs.
    """
    for name, record in manifest.files.items():
        with (path / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != record.sha256:
                raise UnusableStoreError(f"{name} does not have the hash of the manifest")


def _manifest_text(path: Path) -> str:
    try:
        return (path / MANIFEST).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UnusableStoreError(
            "it has no manifest" if path.exists() else "there is none"
        ) from None
    except UnicodeDecodeError:
        raise UnusableStoreError("its manifest is damaged") from None


def _compare(manifest: Manifest, recipe: Recipe) -> None:
    if manifest.format != FORMAT:
        raise UnusableStoreError(f"its format is {manifest.format}, not {FORMAT}")
    if manifest.source_fingerprint != recipe.source.fingerprint():
        raise UnusableStoreError("the source's files have changed")
    policies = (manifest.invalid_utf8, manifest.missing_text)
    made_of = (manifest.identity, manifest.column, *policies)
    asked = (recipe.source.identity, recipe.column, recipe.invalid_utf8, recipe.missing_text)
    if made_of != asked:
        raise UnusableStoreError("it is of another source")
    if manifest.instructions != recipe.format.instructions:
        raise UnusableStoreError("it is of another format or chat template")
    if manifest.tokenizer_fingerprint != recipe.tokenizer.fingerprint:
        raise UnusableStoreError("it is of another tokenizer")
    if manifest.largest_id >= recipe.tokenizer.vocab_size:
        raise UnusableStoreError(
            f"it holds id {manifest.largest_id}, beyond the tokenizer's vocabulary"
        )
    masks = set() if manifest.instructions is None else {LOSS_MASK}
    if set(manifest.files) != {TOKENS, DOCUMENTS, TEXT_BYTES} | masks:
        raise UnusableStoreError("its manifest does not list its files")


def _map(file: Path, dtype: str, manifest: Manifest) -> np.ndarray:
    count = manifest.tokens if file.name in (TOKENS, LOSS_MASK) else manifest.documents + 1
    expected = count * np.dtype(dtype).itemsize
    size = file.stat().st_size if file.exists() else -1
    if size != expected or size != manifest.files[file.name].bytes:
        raise UnusableStoreError(
            f"{file.name} is missing" if size < 0 else f"{file.name} has {size} bytes"
        )
    # A plain array over the mapping: slicing a memmap object costs ten times as much.
    return np.asarray(np.memmap(file, dtype=dtype, mode="r"))
