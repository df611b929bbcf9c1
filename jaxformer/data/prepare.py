"""Makes token stores, safely: interrupted or made twice at once, what is found is whole.

A store is built in a folder beside its place, every file synced, its manifest last, and then moved
into place by renaming. A lock file keeps a second process waiting, and is let go by the system when
its holder dies; what a dead one left in the building folder is cleared.
"""

import hashlib
import os
import shutil
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from jaxformer.data.documents import Document
from jaxformer.data.progress import progress, say
from jaxformer.data.store import (
    DOCUMENTS,
    FORMAT,
    MANIFEST,
    TEXT_BYTES,
    TOKENS,
    FileRecord,
    Manifest,
    Recipe,
    TokenStore,
    UnusableStoreError,
    read_store,
    token_dtype,
)
from jaxformer.schema import UserError

# Texts handed to the tokenizer at once: enough for all cores, little memory.
CHARACTERS_AT_ONCE = 4_000_000
DOCUMENTS_AT_ONCE = 4096
SAID_AFTER_SECONDS = 2.0


def open_store(recipe: Recipe) -> TokenStore:
    """The store of `recipe`, made first if there is none that can be trusted.

    Raises:
        UserError: the source is wrong, empty or unreadable, or the folder cannot be written.
    """
    try:
        return read_store(recipe)
    except UnusableStoreError:
        pass  # looked at again under the lock, where nobody else changes it
    path = recipe.path
    with _locked(path):
        try:
            return read_store(recipe)
        except UnusableStoreError as reason:
            if path.exists():
                say(f"token store of {recipe.source.name}: made again, {reason} ({path})")
        _build(recipe)
        try:
            return read_store(recipe)
        except UnusableStoreError as reason:
            raise UserError(
                f"data source '{recipe.source.name}': its token store {path} was just made, but "
                f"{reason}; run again"
            ) from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    file = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise UserError(
            f"data.cache_dir '{path.parent}' cannot be written: {error.strerror}; name a folder "
            f"that can"
        ) from None
    lock = FileLock(file)
    try:
        lock.acquire(timeout=SAID_AFTER_SECONDS)
    except Timeout:
        say(f"waiting for another process that makes this token store ({file})")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(recipe: Recipe) -> None:
    path = recipe.path
    building = path.with_name(path.name + ".building")
    replaced = path.with_name(path.name + ".replaced")
    for left in (building, replaced):
        shutil.rmtree(left, ignore_errors=True)
    building.mkdir()
    try:
        started = time.monotonic()
        manifest = _write(recipe, building)
        if path.exists():
            path.rename(replaced)
        building.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
    _announce(manifest, path, time.monotonic() - started)


def _write(recipe: Recipe, folder: Path) -> Manifest:
    source = recipe.source
    fingerprint = source.fingerprint()
    with (folder / TOKENS).open("wb") as file:
        writer = _Writer(recipe, file)
        with progress(f"tokenising {source.name}", source.size) as report:
            for batch in _batches(source.documents()):
                writer.add(batch)
                report(batch[-1].done)
        file.flush()
        os.fsync(file.fileno())
    if source.fingerprint() != fingerprint:
        raise UserError(f"data source '{source.name}' changed while it was read; run again")
    manifest = writer.finish(folder, fingerprint)
    _write_synced(folder / MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")
    return manifest


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text or "")
        if characters >= CHARACTERS_AT_ONCE or len(batch) >= DOCUMENTS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@dataclass
class _Writer:
    """Appends documents to the files of a store, and counts and hashes what it appends."""

    recipe: Recipe
    file: BinaryIO
    offsets: array = field(default_factory=lambda: array("q", [0]))
    text_bytes: array = field(default_factory=lambda: array("q", [0]))
    empty: int = 0
    skipped: int = 0
    largest: int = 0

    def __post_init__(self) -> None:
        self.dtype = token_dtype(self.recipe.tokenizer.vocab_size)
        self.digest = hashlib.sha256()

    def add(self, batch: list[Document]) -> None:
        tokenizer = self.recipe.tokenizer
        texts = [document.text for document in batch if document.text]
        self.skipped += sum(document.text is None for document in batch)
        self.empty += sum(document.text == "" for document in batch)
        bos = np.asarray([tokenizer.bos_id], self.dtype)
        eos = np.asarray([tokenizer.eos_id], self.dtype)
        pieces: list[np.ndarray] = []
        for text, ids in zip(texts, tokenizer.encode_documents(texts), strict=True):
            pieces += (bos, ids, eos)
            self.offsets.append(self.offsets[-1] + len(ids) + 2)
            size = len(text) if text.isascii() else len(text.encode("utf-8"))
            self.text_bytes.append(self.text_bytes[-1] + size)
        if pieces:
            stream = np.concatenate(pieces)
            self.largest = max(self.largest, int(stream.max()))
            data = stream.astype(self.dtype).tobytes()
            self.digest.update(data)
            self.file.write(data)

    def finish(self, folder: Path, source_fingerprint: str) -> Manifest:
        recipe, documents = self.recipe, len(self.offsets) - 1
        if not documents:
            raise UserError(
                f"data source '{recipe.source.name}' holds no text: {self.empty} documents are "
                f"empty, {self.skipped} were skipped as not UTF-8 (data.invalid_utf8)"
            )
        if self.largest >= recipe.tokenizer.vocab_size:
            raise ValueError(f"tokenizer '{recipe.tokenizer.name}' gave id {self.largest}")
        files = {
            TOKENS: FileRecord(
                bytes=self.offsets[-1] * self.dtype.itemsize, sha256=self.digest.hexdigest()
            ),
            DOCUMENTS: _write_synced(folder / DOCUMENTS, self.offsets.tobytes()),
            TEXT_BYTES: _write_synced(folder / TEXT_BYTES, self.text_bytes.tobytes()),
        }
        return Manifest(
            format=FORMAT,
            source=recipe.source.name,
            identity=recipe.source.identity,
            source_fingerprint=source_fingerprint,
            column=recipe.column,
            invalid_utf8=recipe.invalid_utf8,
            tokenizer=recipe.tokenizer.name,
            tokenizer_fingerprint=recipe.tokenizer.fingerprint,
            vocab_size=recipe.tokenizer.vocab_size,
            dtype=self.dtype.name,
            documents=documents,
            empty_documents=self.empty,
            skipped_documents=self.skipped,
            tokens=self.offsets[-1],
            text_bytes=self.text_bytes[-1],
            largest_id=self.largest,
            files=files,
        )


def _write_synced(file: Path, data: bytes) -> FileRecord:
    partial = file.with_name(file.name + ".partial")
    with partial.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    partial.rename(file)
    return FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _sync(folder: Path) -> None:
    """Makes renames in `folder` outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _announce(manifest: Manifest, path: Path, seconds: float) -> None:
    left_out = ""
    if manifest.empty_documents:
        left_out += f", {manifest.empty_documents:,} empty ones left out"
    if manifest.skipped_documents:
        left_out += f", {manifest.skipped_documents:,} that are not UTF-8 skipped"
    say(
        f"token store of {manifest.source}: {manifest.documents:,} documents{left_out}, "
        f"{manifest.tokens:,} tokens in {seconds:.1f} s ({path})"
    )
