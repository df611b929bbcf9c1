"""What a store says of itself: `index.json`, and whether its files are as it says."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from pydantic import ValidationError, model_validator

from jaxformer.data.documents import Instructions
from jaxformer.data.shards import (
    TOKENS,
    FileRecord,
    Shard,
    block_type,
    blocks_of,
    file_names,
)
from jaxformer.schema.base import Schema
from jaxformer.storage import Place, Stored

FORMAT = 3  # 2 was one file each for tokens, offsets and masks
INDEX = "index.json"
FILES_AT_ONCE = 16


class UnusableStoreError(Exception):
    """Why a store cannot be trusted, and the shards that are to blame."""

    def __init__(self, reason: str, shards: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.shards = tuple(shards)


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned integer type that holds ids below `vocab_size`."""
    return np.min_scalar_type(vocab_size - 1)


class Manifest(Schema):
    """`index.json`: what a store holds and is made of; for texts, the last two are not written."""

    largest_integer = 2**63 - 1

    format: int
    source: str
    identity: str
    source_fingerprint: str
    column: str
    options: dict[str, str | int | None]
    tokenizer: str
    tokenizer_fingerprint: str
    vocab_size: int
    dtype: str
    documents: int
    left_out: dict[str, int]
    tokens: int
    text_bytes: int
    largest_id: int
    shards: tuple[Shard, ...]
    instructions: Instructions | None = None
    learnt_tokens: int | None = None

    @model_validator(mode="after")
    def _agrees_with_its_shards(self) -> "Manifest":
        if self.dtype != token_dtype(self.vocab_size).name:
            raise ValueError(f"its dtype is not that of a vocabulary of {self.vocab_size}")
        block = block_type(self.dtype, self.instructions is not None).itemsize
        names = [shard.name for shard in self.shards]
        if not names or names != sorted(set(names)):
            raise ValueError("its shards are not in order, or there are none")
        for key in ("tokens", "documents", "text_bytes"):
            if getattr(self, key) != sum(getattr(shard, key) for shard in self.shards):
                raise ValueError(f"its {key} are not those of its shards")
        for shard in self.shards:
            if not shard.tokens or shard.files[TOKENS].bytes != blocks_of(shard.tokens) * block:
                raise ValueError(f"{shard.name} has another size than its tokens")
        if self.largest_id >= self.vocab_size:
            raise ValueError("its ids are beyond its vocabulary")
        return self

    @property
    def sha256(self) -> str:
        """A hash of all tokens and of what else is in the shards."""
        hashes = [record.sha256 for shard in self.shards for _, record in file_names(shard)]
        return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def read_index(place: Place) -> Manifest:
    """What the store at a place says of itself.

    Raises:
        UnusableStoreError: absent, or of another format.
    """
    try:
        text = (place / INDEX).read().decode("utf-8")
        found = json.loads(text).get("format")
        if found != FORMAT:
            newer = isinstance(found, int) and found > FORMAT
            what = "a newer jaxformer made it" if newer else "it is of another version"
            raise UnusableStoreError(f"{what}: its format is {found!r}, not {FORMAT}")
        return Manifest.model_validate_json(text)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UnusableStoreError("it has no index") from None
    except ValidationError:
        raise UnusableStoreError("its index is not one of this version") from None
    except (UnicodeDecodeError, ValueError, AttributeError, RecursionError):
        raise UnusableStoreError("its index is damaged") from None


def check_files(place: Place, shards: Sequence[Shard], *, hashed: bool) -> None:
    """Look at the files of shards, and once more if something is wrong; see `faults_of`.

    Raises:
        UnusableStoreError: something still is.
    """
    for _ in range(2):
        if not (faults := faults_of(place, shards, hashed=hashed)):
            return
    name, fault = faults[0]
    raise UnusableStoreError(f"{name} {fault}", [name.partition(".")[0] for name, _ in faults])


def faults_of(
    place: Place, shards: Sequence[Shard], *, hashed: bool = False
) -> list[tuple[str, str]]:
    """The files of shards that are missing or have another size, or another MD5 than a bucket
    tells. If they are to be `hashed`, those on a disk are read and compared, too."""
    there = place.files()
    files = [file for shard in shards for file in file_names(shard)]

    def fault(file: tuple[str, FileRecord]) -> str | None:
        name, record = file
        return fault_of(place / name, record, there.get(name), hashed=hashed)

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        found = pool.map(fault, files)
        return [(name, why) for (name, _), why in zip(files, found, strict=True) if why]


def fault_of(file: Place, record: FileRecord, stored: Stored | None, *, hashed: bool) -> str | None:
    """How a file differs from its record, if it does; see `faults_of`."""
    if stored is None:
        return "is missing"
    if stored.bytes != record.bytes:
        return f"has {stored.bytes:,} bytes, not {record.bytes:,}"
    reads = hashed and not file.is_remote
    if stored.md5 not in (None, record.md5) or (reads and file.sha256() != record.sha256):
        return "does not have the hash of the index"
    return None
