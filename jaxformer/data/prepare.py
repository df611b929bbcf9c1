"""Makes token stores atomically: one that is interrupted, or made twice at once, is still whole.

A store is built in a folder beside its place, every file synced, its manifest last, and then
renamed into place. A lock file makes a second process wait; the system releases it when its holder
dies, and the next process clears what a dead one left in the building folder.
"""

import hashlib
import os
import shutil
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, get_args

import numpy as np
from filelock import FileLock, Timeout

from jaxformer.config import DataConfig, SourceConfig
from jaxformer.data.documents import Document, Encoded, format_of
from jaxformer.data.rows import LeftOut
from jaxformer.data.sources import open_source
from jaxformer.data.store import (
    DOCUMENTS,
    FORMAT,
    LOSS_MASK,
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
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import UserError
from jaxformer.terminal import progress, say

# Texts handed to the tokenizer at once: enough for all cores, little memory.
CHARACTERS_AT_ONCE = 4_000_000
DOCUMENTS_AT_ONCE = 4096
# Tokens appended to the files at once.
TOKENS_AT_ONCE = 2**20
SAID_AFTER_SECONDS = 2.0


def recipe_of(source: SourceConfig, data: DataConfig, tokenizer: Tokenizer) -> Recipe:
    """The recipe of a source, whose format and column are given.

    Raises:
        UserError: the source is wrong, or the tokenizer has no chat template for its messages.
    """
    opened = open_source(source.source, data.invalid_utf8, data.missing_text, data.bad_rows)
    form = format_of(source, tokenizer)
    policies = (data.invalid_utf8, data.missing_text)
    return Recipe(opened, tokenizer, form, *policies, data.cache_dir)


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
                say(f"token store of {recipe.source.name}: made again because {reason} ({path})")
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
    source, columns = recipe.source, recipe.format.columns
    fingerprint = source.fingerprint()
    with ExitStack() as stack:
        writer = _Writer(
            recipe,
            stack.enter_context(_Growing.of(folder / TOKENS)),
            stack.enter_context(_Growing.of(folder / LOSS_MASK))
            if recipe.format.instructions
            else None,
        )
        with progress(f"tokenising {source.name}", source.size) as report:
            for batch in _batches(recipe.format.documents(source.rows(columns))):
                writer.add(batch)
                report(batch[-1].done)
                batch.clear()  # long texts are let go before the next are read
    if source.fingerprint() != fingerprint:
        raise UserError(f"data source '{source.name}' changed while it was read; run again")
    manifest = writer.finish(folder, fingerprint)
    text = manifest.model_dump_json(indent=2, exclude_none=True)
    _write_synced(folder / MANIFEST, text.encode() + b"\n")
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
class _Growing:
    """A file that is appended to, and its record so far."""

    file: BinaryIO
    bytes: int = 0

    def __post_init__(self) -> None:
        self._digest = hashlib.sha256()

    @classmethod
    @contextmanager
    def of(cls, path: Path) -> Iterator["_Growing"]:
        with path.open("wb") as file:
            yield cls(file)
            file.flush()
            os.fsync(file.fileno())

    def append(self, array: np.ndarray) -> None:
        data = array.tobytes()
        self.bytes += len(data)
        self._digest.update(data)
        self.file.write(data)

    @property
    def record(self) -> FileRecord:
        return FileRecord(bytes=self.bytes, sha256=self._digest.hexdigest())


@dataclass
class _Writer:
    """Appends documents to the files of a store, and counts what it appends."""

    recipe: Recipe
    tokens: _Growing
    loss_mask: _Growing | None
    offsets: array = field(default_factory=lambda: array("q", [0]))
    text_bytes: array = field(default_factory=lambda: array("q", [0]))
    empty: int = 0
    left_out: Counter[LeftOut] = field(default_factory=Counter)
    largest: int = 0
    learnt: int = 0
    length: int = 0  # in tokens, appended or waiting to be

    def __post_init__(self) -> None:
        self.dtype = token_dtype(self.recipe.tokenizer.vocab_size)

    def add(self, batch: list[Document]) -> None:
        texts = [document for document in batch if document.text]
        self.left_out.update(each.left_out for each in batch if each.left_out)
        self.empty += sum(document.text == "" for document in batch)
        waiting: list[Encoded] = []
        size = 0
        for encoded in self.recipe.format.encode(texts, self.recipe.tokenizer):
            if encoded.loss_mask is not None and not encoded.loss_mask.any():
                self.empty += 1
                continue
            waiting.append(encoded)
            self.length += len(encoded.ids)
            if encoded.ends:
                self.offsets.append(self.length)
                self.text_bytes.append(self.text_bytes[-1] + encoded.text_bytes)
            size += len(encoded.ids)
            if size >= TOKENS_AT_ONCE:
                self._append(waiting)
                waiting, size = [], 0
        if waiting:
            self._append(waiting)

    def _append(self, waiting: list[Encoded]) -> None:
        stream = np.concatenate([encoded.ids for encoded in waiting])
        self.largest = max(self.largest, int(stream.max()))
        self.tokens.append(stream.astype(self.dtype))
        masks = [encoded.loss_mask for encoded in waiting if encoded.loss_mask is not None]
        if self.loss_mask is not None and masks:
            mask = np.concatenate(masks)
            self.learnt += int(np.count_nonzero(mask))
            self.loss_mask.append(mask)

    def finish(self, folder: Path, source_fingerprint: str) -> Manifest:
        recipe, documents = self.recipe, len(self.offsets) - 1
        instructions = recipe.format.instructions
        if not documents:
            reasons = {reason: self.left_out[reason] for reason in get_args(LeftOut)}
            raise UserError(
                f"data source '{recipe.source.name}' holds no "
                f"{'answer to learn' if instructions else 'text'}: {self.empty} "
                f"{'rows have none' if instructions else 'documents are empty'}, "
                f"{reasons['not_utf8']} were skipped as not UTF-8 (data.invalid_utf8), "
                f"{reasons['missing']} as null or missing (data.missing_text), {reasons['bad']} as "
                f"no rows (data.bad_rows), {reasons['short']} as too short (data.min_chars), "
                f"{reasons['long']} as too long (data.max_chars)"
            )
        if self.largest >= recipe.tokenizer.vocab_size:
            raise ValueError(f"tokenizer '{recipe.tokenizer.name}' gave id {self.largest}")
        files = {
            TOKENS: self.tokens.record,
            DOCUMENTS: _write_synced(folder / DOCUMENTS, self.offsets.tobytes()),
            TEXT_BYTES: _write_synced(folder / TEXT_BYTES, self.text_bytes.tobytes()),
        }
        if self.loss_mask is not None:
            files[LOSS_MASK] = self.loss_mask.record
        return Manifest(
            format=FORMAT,
            source=recipe.source.name,
            identity=recipe.source.identity,
            source_fingerprint=source_fingerprint,
            column=recipe.column,
            invalid_utf8=recipe.invalid_utf8,
            missing_text=recipe.missing_text,
            tokenizer=recipe.tokenizer.name,
            tokenizer_fingerprint=recipe.tokenizer.fingerprint,
            vocab_size=recipe.tokenizer.vocab_size,
            dtype=self.dtype.name,
            documents=documents,
            empty_documents=self.empty,
            skipped_documents=self.left_out["not_utf8"],
            missing_documents=self.left_out["missing"],
            tokens=self.offsets[-1],
            text_bytes=self.text_bytes[-1],
            largest_id=self.largest,
            files=files,
            instructions=instructions,
            learnt_tokens=self.learnt if instructions else None,
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
    left_out = learnt = ""
    if manifest.empty_documents:
        kind = "without an answer" if manifest.instructions else "empty ones"
        left_out += f", {manifest.empty_documents:,} {kind} left out"
    if manifest.skipped_documents:
        left_out += f", {manifest.skipped_documents:,} that are not UTF-8 skipped"
    if manifest.missing_documents:
        left_out += f", {manifest.missing_documents:,} that are null or missing skipped"
    if manifest.learnt_tokens is not None:
        learnt = f" ({manifest.learnt_tokens / manifest.tokens:.1%} in the loss)"
    say(
        f"token store of {manifest.source}: {manifest.documents:,} documents{left_out}, "
        f"{manifest.tokens:,} tokens{learnt} in {seconds:.1f} s ({path})"
    )
