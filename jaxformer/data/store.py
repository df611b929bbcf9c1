"""The token store: a source tokenised once, in shards, on a disk or in a bucket.

A store is a folder: the shards (see `shards`), each with a record beside it of how it was made, and
`index.json`, which is written last and says what the store holds. The order of its tokens is that
of the source: the shards of every unit of the source, unit by unit, whoever made them. Documents
are [bos] tokens [eos], without bos where the tokenizer adds none; for instructions, whatever their
format makes of a row.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import overload

import numpy as np

from jaxformer.config.data import DataConfig
from jaxformer.data.blocks import (
    BlockReader,
    Blocks,
    BlocksInBucket,
    BlocksOnDisk,
    damaged_shard,
)
from jaxformer.data.manifest import (
    INDEX,
    Manifest,
    UnusableStoreError,
    check_files,
    read_index,
)
from jaxformer.data.recipe import Recipe
from jaxformer.data.row_cache import RowCache
from jaxformer.data.shards import (
    BLOCK_TOKENS,
    DOCUMENTS,
    END,
    LEARNT,
    TEXT_BYTES,
    TOKENS,
    Shard,
    Stretch,
    block_type,
    file_names,
    read_documents,
    stretch_of,
)
from jaxformer.errors import UserError
from jaxformer.parallel import processes
from jaxformer.paths import local_path
from jaxformer.storage import Place

# Hashing reads about 1.5 GB per second, so larger stores are hashed only by `data inspect`; of them
# and of those in buckets, sizes are compared, and the MD5s that a bucket tells. Every read is
# checked.
HASHED_ON_OPENING = 1 << 30
TABLES_KEPT = 8  # of the documents of shards


class TokenStore:
    """An open store; its tokens are numbered from 0 through all shards.

    Raises:
        UserError: a shard is missing, cut short or altered; raised by all methods that read.
    """

    def __init__(self, place: Place, manifest: Manifest, cache: RowCache) -> None:
        self.place, self.manifest = place, manifest
        self._shards = [shard for shard in manifest.shards if shard.tokens]
        self._ends = np.cumsum([shard.tokens for shard in self._shards], dtype=np.int64)
        self._documents = np.cumsum([shard.documents for shard in self._shards], dtype=np.int64)
        self._table = lru_cache(TABLES_KEPT)(self._read_table)
        self._blocks = self._reader(cache)

    def _reader(self, cache: RowCache) -> BlockReader:
        block = block_type(self.manifest.dtype, self.has_loss_mask)
        if not self.place.is_remote:
            return BlocksOnDisk(self.place, block)
        size = sum(shard.files[TOKENS].bytes for shard in self._shards)
        whole = processes.count() == 1 and size <= cache.limit
        return BlocksInBucket(self.place, block, cache, self._key, whole=whole)

    @property
    def has_loss_mask(self) -> bool:
        """Whether it says which tokens are in the loss; if not, all but a document's first are."""
        return self.manifest.instructions is not None

    @property
    def tokens(self) -> "Tokens":
        return Tokens(self, 0, self.manifest.tokens)

    def read(self, begin: int, end: int) -> Stretch:
        """The tokens [begin, end)."""
        return self.read_all([begin], [end])[0]

    def read_all(self, begins: Sequence[int], ends: Sequence[int]) -> list[Stretch]:
        """The tokens of several stretches; what is in a bucket is fetched at the same time."""
        wanted: list[Blocks] = []
        cuts: list[list[tuple[int, int]]] = []
        for begin, end in zip(begins, ends, strict=True):
            cuts.append([])
            number = int(np.searchsorted(self._ends, begin, side="right"))
            while begin < end:
                shard, start = self._shards[number], self._start(number)
                stop = min(end, start + shard.tokens)
                first, last = (begin - start) // BLOCK_TOKENS, -(-(stop - start) // BLOCK_TOKENS)
                wanted.append(Blocks(shard, first, last))
                cuts[-1].append((begin - start - first * BLOCK_TOKENS, stop - begin))
                begin, number = stop, number + 1
        found = iter(self._blocks.read(wanted))
        return [self._joined([stretch_of(next(found), *cut) for cut in each]) for each in cuts]

    def documents_before(self, token: int) -> int:
        """How many documents begin before this token."""
        if token >= self.manifest.tokens:
            return self.manifest.documents
        number = int(np.searchsorted(self._ends, token, side="right"))
        starts = np.concatenate([[0], self._table(number)[:-1, END]])
        before = int(self._documents[number]) - self._shards[number].documents
        return before + int(np.searchsorted(starts, token - self._start(number)))

    def document_at(self, token: int) -> tuple[int, int]:
        """Where the document with this token begins and ends."""
        number = int(np.searchsorted(self._ends, token, side="right"))
        start, ends = self._start(number), self._table(number)[:, END]
        place = int(np.searchsorted(ends, token - start, side="right"))
        return start + (int(ends[place - 1]) if place else 0), start + int(ends[place])

    def text_bytes_from(self, token: int) -> int:
        """UTF-8 bytes of the text of the documents that begin at this token or after it."""
        if token >= self.manifest.tokens:
            return 0
        number = int(np.searchsorted(self._ends, token, side="right"))
        table, local = self._table(number), token - self._start(number)
        whole = int(np.searchsorted(np.concatenate([[0], table[:-1, END]]), local))
        before = int(table[whole - 1, TEXT_BYTES]) if whole else 0
        in_shard = self._shards[number].text_bytes - before
        return in_shard + sum(shard.text_bytes for shard in self._shards[number + 1 :])

    def learnt_before(self, token: int) -> int:
        """How many tokens before this one are in the loss, in a store that has a loss mask."""
        if token >= self.manifest.tokens:
            return self.manifest.learnt_tokens or 0
        number = int(np.searchsorted(self._ends, token, side="right"))
        total = sum(shard.learnt_tokens or 0 for shard in self._shards[:number])
        table, start = self._table(number), self._start(number)
        whole = int(np.searchsorted(table[:, END], token - start, side="right"))
        begin = start + (int(table[whole - 1, END]) if whole else 0)
        total += int(table[whole - 1, LEARNT]) if whole else 0
        learnt = self.read(begin, token).learnt if begin < token else None
        return total + (0 if learnt is None else int(np.count_nonzero(learnt)))

    def document_tables(self) -> np.ndarray:
        """Where every document ends, and the bytes of text up to there: [documents, columns]."""
        tables: list[np.ndarray] = []
        for number, shard in enumerate(self._shards):
            table = self._read_table(number).copy()
            before = tables[-1][-1] if tables else np.zeros(table.shape[1], np.int64)
            assert table[-1, END] == shard.tokens
            tables.append(table + before)
        return np.concatenate(tables)

    def shard(self, number: int) -> tuple[int, Shard, np.ndarray]:
        """Where a shard begins, what it holds, and its table of documents."""
        return self._start(number), self._shards[number], self._table(number)

    def verify(self) -> None:
        """Compare every file with its SHA-256.

        Raises:
            UnusableStoreError: files differ.
        """
        check_files(self.place, self.manifest.shards, hashed=True)

    @property
    def _key(self) -> str:
        """The name of its copies in a cache; another store in its place has another."""
        return hashlib.sha256(f"{self.place} {self.manifest.sha256}".encode()).hexdigest()[:32]

    def _start(self, number: int) -> int:
        return int(self._ends[number]) - self._shards[number].tokens

    def _joined(self, parts: list[Stretch]) -> Stretch:
        if len(parts) == 1:
            return parts[0]
        if not parts:
            none = np.zeros(0, bool)
            return Stretch(none.astype(self.manifest.dtype), none, none)
        tokens, starts, learnt = zip(*parts, strict=True)
        mask = np.concatenate(learnt) if self.has_loss_mask else None
        return Stretch(np.concatenate(tokens), np.concatenate(starts), mask)

    def _read_table(self, number: int) -> np.ndarray:
        shard = self._shards[number]
        fault = ""
        for _ in range(2):
            try:
                return read_documents((self.place / f"{shard.name}{DOCUMENTS}").read(), shard)
            except FileNotFoundError:
                fault = "is missing"
            except ValueError:
                fault = "has been altered"
        raise damaged_shard(self.place, shard, DOCUMENTS, fault)


@dataclass(frozen=True)
class Tokens:
    """The tokens [begin, end) of a store as a sequence, read where they are asked for."""

    store: TokenStore
    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> np.ndarray: ...

    def __getitem__(self, place: int | slice) -> int | np.ndarray:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            return self.store.read(self.begin + start, self.begin + stop).tokens[::step]
        return int(self.store.read(self.begin + place, self.begin + place + 1).tokens[0])


def open_prepared(place: Place, data: DataConfig) -> TokenStore:
    """The store at a place, whatever it was made from.

    Raises:
        UserError: there is none, or it cannot be trusted.
    """
    try:
        manifest = read_index(place)
        _check_options(place, manifest, data)
        return _opened(place, manifest, data)
    except UnusableStoreError as reason:
        raise UserError(
            f"token store {place}: {reason}; give the folder that data prepare named, with "
            f"{INDEX} in it, or prepare it again"
        ) from None


def _check_options(place: Place, manifest: Manifest, data: DataConfig) -> None:
    """Refuse what can no longer be done to a prepared store."""
    asked: dict[str, object] = {"min_chars": data.min_chars, "max_chars": data.max_chars}
    asked["deduplicate"] = data.deduplicate and data.deduplicate.kind
    for key, value in asked.items():
        made = manifest.options.get(key)
        if value is not None and value != made:
            raise UserError(
                f"data.{key} is given, and the token store {place} was prepared "
                f"{'without it' if made is None else f'with {made}'}; leave it out, or prepare the "
                f"text again with it"
            )


def read_store(recipe: Recipe, data: DataConfig) -> TokenStore:
    """The store of `recipe`, compared with it and with its own index.

    Raises:
        UnusableStoreError: absent, incomplete, altered, of another format, or its text has changed.
    """
    return _opened(recipe.place, read_manifest(recipe), data)


def read_manifest(recipe: Recipe) -> Manifest:
    """What the store of `recipe` says of itself, compared with the recipe; its shards are not read.

    Raises:
        UnusableStoreError: absent, of another format, or its text has changed.
    """
    manifest = read_index(recipe.place)
    if manifest.source_fingerprint != recipe.fingerprint:
        raise UnusableStoreError("the source's files have changed")
    if (manifest.identity, manifest.column) != (recipe.source.identity, recipe.column):
        raise UnusableStoreError("it is of another source")
    if (manifest.options, manifest.instructions) != (recipe.made_with, recipe.format.instructions):
        raise UnusableStoreError("it is of another format or chat template")
    if manifest.tokenizer_fingerprint != recipe.tokenizer.fingerprint:
        raise UnusableStoreError("it is of another tokenizer")
    return manifest


def _opened(place: Place, manifest: Manifest, data: DataConfig) -> TokenStore:
    """The store, after a look at the sizes of its files; small ones on a disk are hashed."""
    limit = data.cache_bytes if place.is_remote else 0
    cache = RowCache(local_path(data.cache_dir).absolute() / "rows", limit)
    store = TokenStore(place, manifest, cache)
    size = sum(record.bytes for shard in manifest.shards for _, record in file_names(shard))
    check_files(place, manifest.shards, hashed=size <= HASHED_ON_OPENING)
    return store
