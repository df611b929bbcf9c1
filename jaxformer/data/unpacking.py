"""Opens text files: compressed ones are unpacked, and files that are not text are refused."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from jaxformer.errors import UserError
from jaxformer.file_formats import HEAD, binary_format_of, compression_of, encoding_of

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "Zstandard"}
_DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError)
_MENDS = {
    "a Parquet file": "give it as parquet:GLOB",
    "a zip archive": "unpack it, and name the files inside",
    "a tar archive": "unpack it, and name the files inside",
    "a 7z archive": "unpack it, and name the files inside",
    "a RAR archive": "unpack it, and name the files inside",
    "an LZ4 file": "unpack it; gzip, bzip2, xz and Zstandard are read as they are",
    "a Snappy file": "unpack it; gzip, bzip2, xz and Zstandard are read as they are",
}


class TextFile:
    """The bytes of a text file, decompressed and without a byte order mark.

    Raises:
        UserError: the file is truncated or damaged; raised by all methods that read.
    """

    def __init__(self, file: Path, raw: io.BufferedReader) -> None:
        self._file, self._raw = file, raw
        self._packed = compression_of(raw.read(HEAD))
        raw.seek(0)
        self._lines = 0
        expected = SUFFIXES.get(file.suffix)
        if expected and expected != self._packed:
            self._packed = expected
            raise self._damaged(f"it does not begin as {expected} does")
        self._content = raw
        if self._packed is not None:
            self._content = io.BufferedReader(_OPENERS[self._packed](raw))
        self._refuse(self._read(lambda: self._content.peek(HEAD))[:HEAD])

    @property
    def done(self) -> int:
        """How many bytes of the stored file have been read."""
        return self._raw.tell()

    def peek(self) -> bytes:
        """Some of the next bytes, which are not consumed."""
        return self._read(lambda: self._content.peek(HEAD))

    def readline(self) -> bytes:
        line = self._read(self._content.readline)
        self._lines += 1
        return line

    def read(self, size: int = -1) -> bytes:
        return self._read(lambda: self._content.read(size))

    def _read(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except _DAMAGE as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, reason: str) -> UserError:
        if self._packed is None:
            return UserError(f"{self._file}: cannot be read: {reason}")
        after = f" after line {self._lines}" if self._lines else ""
        return UserError(
            f"{self._file}: truncated or damaged {self._packed}{after} ({reason}); copy the file "
            f"again, or leave it out of the pattern"
        )

    def _refuse(self, head: bytes) -> None:
        if head.startswith(BYTE_ORDER_MARK):
            self._content.read(len(BYTE_ORDER_MARK))
            return
        if encoding := encoding_of(head):
            raise UserError(
                f"{self._file} is {encoding}, by its byte order mark; convert it to UTF-8, as "
                f"with: iconv -f {encoding} -t UTF-8 OLD > NEW"
            )
        inner = compression_of(head) if self._packed else None
        kind = f"compressed by {inner} once more" if inner else binary_format_of(head)
        if kind:
            inside = f" inside of {self._packed}" if self._packed and not inner else ""
            mend = _MENDS.get(kind, "leave it out of the pattern, or convert it to text")
            raise UserError(f"{self._file} is {kind}{inside}, not text; {mend}")


def _zstandard(raw: IO[bytes]) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(raw, "zstd")


_OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    "gzip": lambda raw: gzip.GzipFile(fileobj=raw),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "Zstandard": _zstandard,
}


@contextmanager
def open_text(file: Path) -> Iterator[TextFile]:
    """A text file, compressed or not.

    Raises:
        UserError: it cannot be read, is damaged, or is not text.
    """
    try:
        raw = file.open("rb")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    with raw:
        yield TextFile(file, raw)
