"""The files of a shard: a piece of the token stream that can be read from any place on.

`NAME.tokens` is a sequence of blocks of BLOCK_TOKENS tokens, the last one padded with zeros:

    tokens  BLOCK_TOKENS unsigned integers, of the store's type, little-endian
    starts  a bit per token, lowest first: a document begins here
    learnt  for instructions only, a bit per token: it is in the loss
    crc     CRC-32 of all of the above

so that one read gives everything about a stretch of tokens, and every read is checked. A block of a
hole in a sparse file is zeros, whose CRC-32 is not zero: it does not pass for one that was written.

`NAME.documents` is int64 [documents, columns]: where each document ends in the shard, the UTF-8
bytes of text up to there, and, for instructions, the tokens in the loss up to there. Nothing
predicts a document's first token: if there is no bos, its text is left out of the bytes.

`NAME.signatures` is uint64 [documents, numbers], where duplicates are to be found; see
`signatures`.
"""

import hashlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, NonNegativeInt, model_validator

from jaxformer.schema.base import Schema

BLOCK_TOKENS = 128
TOKENS, DOCUMENTS, SIGNATURES = ".tokens", ".documents", ".signatures"
END, TEXT_BYTES, LEARNT = range(3)  # columns of NAME.documents
APPENDED_AT_ONCE = 1 << 20  # tokens


class FileRecord(Schema):
    """A file's size and hashes; a bucket tells the MD5 of what it holds without reading it."""

    largest_integer = 2**63 - 1

    bytes: NonNegativeInt
    sha256: str
    md5: str


class Shard(Schema):
    """What a shard holds, and its files by their endings; one without tokens has no files."""

    largest_integer = 2**63 - 1

    name: Annotated[str, Field(pattern=r"^\d{5,}-\d{3,}$")]
    tokens: NonNegativeInt
    documents: NonNegativeInt
    text_bytes: NonNegativeInt
    learnt_tokens: NonNegativeInt | None = None
    files: dict[str, FileRecord]

    @model_validator(mode="after")
    def _files_belong_to_it(self) -> "Shard":
        needed = {TOKENS, DOCUMENTS} if self.tokens else set()
        listed = needed <= self.files.keys() <= needed | {SIGNATURES}
        if not listed or (self.tokens > 0) != (self.documents > 0):
            raise ValueError(f"shard {self.name} does not list its files")
        return self


class Stretch(NamedTuple):
    """Tokens one after another, and what is known of each."""

    tokens: np.ndarray  # unsigned [length]
    starts: np.ndarray  # bool [length]
    learnt: np.ndarray | None  # bool [length]; None: all but a document's first are in the loss


def block_type(dtype: str, has_loss_mask: bool) -> np.dtype:
    """A block as a structure of numpy."""
    bits = ("u1", BLOCK_TOKENS // 8)
    fields = [
        ("tokens", np.dtype(dtype).newbyteorder("<"), BLOCK_TOKENS),
        ("starts", *bits),
        *([("learnt", *bits)] if has_loss_mask else []),
        ("crc", "<u4"),
    ]
    return np.dtype(fields)


def blocks_of(tokens: int) -> int:
    """How many blocks so many tokens take."""
    return -(-tokens // BLOCK_TOKENS)


def are_whole(blocks: np.ndarray) -> bool:
    """Whether every block has the CRC-32 of its content."""
    return checksums(blocks) == blocks["crc"].tolist()


def checksums(blocks: np.ndarray) -> list[int]:
    """The CRC-32 of each block's content."""
    size, data = blocks.dtype.itemsize, memoryview(blocks.tobytes())
    return [zlib.crc32(data[at : at + size - 4]) for at in range(0, len(data), size)]


def stretch_of(blocks: np.ndarray, skip: int, length: int) -> Stretch:
    """`length` tokens of the blocks, without the first `skip`."""
    wanted = slice(skip, skip + length)

    def bits(name: str) -> np.ndarray:
        flags = np.unpackbits(blocks[name].reshape(-1), bitorder="little")
        return flags[wanted].view(bool)

    learnt = bits("learnt") if "learnt" in (blocks.dtype.names or ()) else None
    return Stretch(blocks["tokens"].reshape(-1)[wanted], bits("starts"), learnt)


class ShardWriter:
    """Appends documents to the files of a shard in `folder`, in little memory."""

    def __init__(self, folder: Path, name: str, dtype: str, has_loss_mask: bool) -> None:
        self._name, self._folder = name, folder
        self._block = block_type(dtype, has_loss_mask)
        self._has_loss_mask = has_loss_mask
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _Hashed(self.path(TOKENS))
        self._waiting: list[Stretch] = []
        self._num_waiting = 0
        self._rows: list[tuple[int, ...]] = []  # of NAME.documents
        self._signatures: list[np.ndarray] = []
        self._begins = True  # the next token begins a document
        self.tokens = self.text_bytes = self.learnt = 0

    def path(self, ending: str) -> Path:
        return self._folder / f"{self._name}{ending}"

    @property
    def bytes(self) -> int:
        """The size of the tokens' file when all is written."""
        return blocks_of(self.tokens) * self._block.itemsize

    def add(self, ids: np.ndarray, learnt: np.ndarray | None, text_bytes: int, ends: bool) -> None:
        """Append a document, or a part of one; the last part `ends` it and has its bytes."""
        starts = np.zeros(len(ids), bool)
        starts[:1] = self._begins
        self.learnt += 0 if learnt is None else int(np.count_nonzero(learnt))
        self.text_bytes += text_bytes
        self._begins = ends
        self._add(Stretch(ids, starts, learnt))
        if ends:
            row = (self.tokens, self.text_bytes, self.learnt)
            self._rows.append(row if self._has_loss_mask else row[:LEARNT])

    def add_documents(self, tokens: Stretch, table: np.ndarray) -> None:
        """Append whole documents; `table` says of each what a row of NAME.documents says of all up
        to there."""
        before = np.array((self.tokens, self.text_bytes, self.learnt))[: table.shape[1]]
        rows = before + np.cumsum(table, axis=0)
        self._rows += map(tuple, rows.tolist())
        self.text_bytes = int(rows[-1, TEXT_BYTES])
        self.learnt = int(rows[-1, LEARNT]) if self._has_loss_mask else 0
        self._add(tokens)

    def _add(self, tokens: Stretch) -> None:
        self._waiting.append(tokens)
        self._num_waiting += len(tokens.tokens)
        self.tokens += len(tokens.tokens)
        if self._num_waiting >= APPENDED_AT_ONCE:
            self._append(self._num_waiting // BLOCK_TOKENS * BLOCK_TOKENS)

    def sign(self, signature: np.ndarray) -> None:
        """Append the signature of the document that has just ended."""
        self._signatures.append(signature)

    def finish(self) -> Shard:
        """Write what is left, and sync all files; a shard without tokens has none."""
        self._append(self._num_waiting)
        tokens = self._file.finish()
        if not self.tokens:
            self.path(TOKENS).unlink()
            return Shard(name=self._name, tokens=0, documents=0, text_bytes=0, files={})
        tables = {DOCUMENTS: np.array(self._rows, "<i8")}
        if self._signatures:
            tables[SIGNATURES] = np.array(self._signatures, "<u8")
        files = {TOKENS: tokens}
        for ending, table in tables.items():
            file = _Hashed(self.path(ending))
            file.append(table.tobytes())
            files[ending] = file.finish()
        return Shard(
            name=self._name,
            tokens=self.tokens,
            documents=len(self._rows),
            text_bytes=self.text_bytes,
            learnt_tokens=self.learnt if self._has_loss_mask else None,
            files=files,
        )

    def _append(self, count: int) -> None:
        """Write the first `count` waiting tokens, and zeros up to the end of a block."""
        if not count:
            return
        blocks = np.zeros(blocks_of(count), self._block)
        tokens, starts, learnt = zip(*self._waiting, strict=True)
        named = {"tokens": np.concatenate(tokens), "starts": np.concatenate(starts)}
        if self._has_loss_mask:
            named["learnt"] = np.concatenate(learnt)
        for name, values in named.items():
            padded = np.zeros(len(blocks) * BLOCK_TOKENS, values.dtype)
            padded[:count] = values[:count]
            if name != "tokens":
                padded = np.packbits(padded, bitorder="little")
            blocks[name] = padded.reshape(len(blocks), -1)
        rest = {name: values[count:] for name, values in named.items()}
        self._waiting = [Stretch(rest["tokens"], rest["starts"], rest.get("learnt"))]
        self._num_waiting -= count
        blocks["crc"] = checksums(blocks)
        self._file.append(blocks.tobytes())


class _Hashed:
    """A file that is appended to, and its hashes so far."""

    def __init__(self, path: Path) -> None:
        self._file, self._bytes = path.open("wb"), 0
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)

    def append(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._md5.update(data)
        self._bytes += len(data)

    def finish(self) -> FileRecord:
        """Sync and close the file."""
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        return FileRecord(
            bytes=self._bytes, sha256=self._sha256.hexdigest(), md5=self._md5.hexdigest()
        )


def read_documents(data: bytes, shard: Shard) -> np.ndarray:
    """The content of NAME.documents: int64 [documents, columns].

    Raises:
        ValueError: it has another hash than the shard says.
    """
    if hashlib.sha256(data).hexdigest() != shard.files[DOCUMENTS].sha256:
        raise ValueError(f"{shard.name}{DOCUMENTS} does not have the hash of the index")
    return np.frombuffer(data, "<i8").reshape(shard.documents, -1)


def file_names(shard: Shard) -> Iterator[tuple[str, FileRecord]]:
    for ending, record in shard.files.items():
        yield f"{shard.name}{ending}", record
