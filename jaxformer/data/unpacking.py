"""Opens text files: compressed ones are unpacked, and files that are not text are refused."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any, TypeVar

from jaxformer.errors import UserError
from jaxformer.file_formats import HEAD, binary_format_of, compression_of, encoding_of
from jaxformer.storage import Place

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BYTES_AT_ONCE = 1 << 22
SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "Zstandard"}
DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError)
T = TypeVar("T")
_MENDS = {
    "a Parquet file": "give it as parquet:GLOB",
    "a zip archive": "unpack it, and name the files inside",
    "a tar archive": "give it as webdataset:GLOB, or unpack it, and name the files inside",
    "a 7z archive": "unpack it, and name the files inside",
    "a RAR archive": "unpack it, and name the files inside",
    "an LZ4 file": "unpack it; gzip, bzip2, xz and Zstandard are read as they are",
    "a Snappy file": "unpack it; gzip, bzip2, xz and Zstandard are read as they are",
}


class UnpackedFile:
    """The bytes of a file, decompressed where it is compressed, read from its beginning.

    Raises:
        UserError: the file is truncated or damaged; raised by all methods that read.
    """

    def __init__(self, place: Place, raw: io.BufferedReader) -> None:
        self.place, self.stored = place, raw
        self.packed = compression_of(self._checked(lambda: raw.peek(HEAD)))
        expected = SUFFIXES.get(_suffix(place))
        if expected and expected != self.packed:
            self.packed = expected
            raise self.damaged(f"it does not begin as {expected} does")
        self.content = raw
        if self.packed is not None:
            self.content = io.BufferedReader(_OPENERS[self.packed](raw))

    @property
    def done(self) -> int:
        """How many bytes of the stored file have been read."""
        return self.stored.tell()

    def _checked(self, read: Callable[[], T]) -> T:
        """What `read` gives of the content."""
        try:
            return read()
        except DAMAGE as error:
            raise self.damaged(str(error)) from None

    def damaged(self, reason: str, after: str = "", kind: str = "file") -> UserError:
        return UserError(
            f"{self.place}: truncated or damaged {self.packed or kind}{after} ({reason}); copy the "
            f"file again, or leave it out of the pattern"
        )


class TextFile:
    """The bytes of a text file, decompressed and without a byte order mark.

    Raises:
        UserError: the file is truncated or damaged, or is not text; raised by all methods that
            read.
    """

    def __init__(self, file: UnpackedFile) -> None:
        self._file, self._stored = file, file.stored
        self._content = file.content
        self._lines = 0
        self._refuse(self.peek()[:HEAD])

    @property
    def done(self) -> int:
        """How many bytes of the stored file have been read."""
        return self._file.done

    @property
    def can_be_cut(self) -> bool:
        """Whether reading can start anywhere."""
        return self._file.packed is None and self._stored.seekable()

    def start_at_a_line(self, offset: int) -> None:
        """Go to the first line that begins at `offset` of the stored file or after it."""
        if offset == 0:
            return
        self._read(lambda: self._stored.seek(offset - 1))
        last = b""
        while last != b"\n":
            piece = self._read(lambda: self._stored.readline(BYTES_AT_ONCE))
            if not piece:
                return
            last = piece[-1:]

    def peek(self) -> bytes:
        """Some of the next bytes, which are not consumed."""
        return self._read(lambda: self._content.peek(HEAD))

    def readline(self) -> bytes:
        line = self._read(self._content.readline)
        self._lines += 1
        return line

    def read(self, size: int) -> bytes:
        return self._read(lambda: self._content.read(size))

    def _read(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except DAMAGE as error:
            after = f" after line {self._lines}" if self._lines else ""
            raise self._file.damaged(str(error), after) from None

    def _refuse(self, head: bytes) -> None:
        if head.startswith(BYTE_ORDER_MARK):
            self._content.read(len(BYTE_ORDER_MARK))
            return
        if encoding := encoding_of(head):
            raise UserError(
                f"{self._file.place} is {encoding}, by its byte order mark; convert it to UTF-8, "
                f"as with: iconv -f {encoding} -t UTF-8 OLD > NEW"
            )
        inner = compression_of(head) if self._file.packed else None
        kind = f"compressed by {inner} once more" if inner else binary_format_of(head)
        if kind:
            inside = f" inside of {self._file.packed}" if self._file.packed and not inner else ""
            mend = _MENDS.get(kind, "leave it out of the pattern, or convert it to text")
            raise UserError(f"{self._file.place} is {kind}{inside}, not text; {mend}")


def _suffix(place: Place) -> str:
    name = place.name.partition("?")[0] if place.is_on_the_web else place.name
    return PurePosixPath(name).suffix


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
def open_unpacked(place: Place) -> Iterator[UnpackedFile]:
    """A file, compressed or not.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    with open_stored(place) as raw:
        yield UnpackedFile(place, raw)


@contextmanager
def open_text(place: Place) -> Iterator[TextFile]:
    """A text file, compressed or not.

    Raises:
        UserError: it cannot be read, is damaged, or is not text.
    """
    with open_unpacked(place) as file:
        yield TextFile(file)


def open_stored(place: Place) -> io.BufferedReader:
    """The bytes of a file as they are stored.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    try:
        return place.open()
    except FileNotFoundError:
        raise UserError(
            f"{place}: cannot be read: there is no such file; it may have been removed after it "
            f"was found"
        ) from None
    except OSError as error:
        raise UserError(f"{place}: cannot be read: {error.strerror or error}") from None
