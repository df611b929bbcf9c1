"""Files on a disk, in a bucket or on a web server, read and written through `fsspec`.

What fails on the way to a bucket is tried again for PATIENCE_SECONDS; what is not there, or not
allowed, is an error at once.
"""

import base64
import contextlib
import hashlib
import importlib.util
import io
import os
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from jaxformer.errors import RunFailed, UserError, did_you_mean
from jaxformer.server_errors import first_line, is_denied, may_pass, root_cause, status_code
from jaxformer.terminal import say

PATIENCE_SECONDS = 300.0
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 30.0
READ_AHEAD = 1 << 22  # bytes that a stream asks for at once
# What pip installs for a scheme; fsspec itself serves the others.
EXTRAS = {"gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
TOLD_AT_ONCE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
WEB = ("http", "https")

T = TypeVar("T")


class Unreachable(RunFailed):
    """A bucket or server did not answer for PATIENCE_SECONDS."""


@dataclass(frozen=True)
class Stored:
    """A file's size, its MD5 in hexadecimal where the store tells it without reading, and a text
    that changes when the file does."""

    bytes: int
    md5: str | None
    version: str


def is_url(name: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name) is not None


def fault_of_url(name: str) -> str | None:
    """What is wrong with the scheme of an address; None if nothing is, or it is a path on a disk.

    Only the name is looked at: a configuration can be checked where its packages are missing.
    """
    if not is_url(name):
        return None
    import fsspec

    scheme, _, rest = name.partition("://")
    if re.match(r"[^/?#]*:[^/?#]*@", rest):
        return (
            f"an address {scheme}:// holds a password, which would be saved with the run; put it "
            f"into the configuration of fsspec, ~/.config/fsspec, and leave it out"
        )
    if not rest.strip("/"):
        return f"'{name}' names no place; write {scheme}://BUCKET/FOLDER"
    known = [*fsspec.available_protocols()]
    if scheme == "file":
        return f"'{name}': write {name.removeprefix('file://')}"
    if scheme in known:
        return None
    return (
        f"'{name}': the scheme '{scheme}' is unknown; allowed: a path on a disk, gs://, s3://, "
        f"https://, or another that fsspec serves.{did_you_mean(scheme, known)}"
    )


@dataclass(frozen=True)
class Place:
    """A file or a folder, by its address or its path on a disk.

    Raises:
        UserError: the scheme is unknown, its package is missing, or access is denied; raised by all
            methods.
        Unreachable: see PATIENCE_SECONDS; raised by all methods.
    """

    name: str

    @property
    def is_remote(self) -> bool:
        return is_url(self.name)

    def __truediv__(self, child: str) -> "Place":
        return Place(f"{self.name.rstrip('/')}/{child}")

    def __str__(self) -> str:
        return self.name

    @property
    def is_on_the_web(self) -> bool:
        """Whether it is on a web server, which tells no lists of its files."""
        return self.name.partition("://")[0] in WEB

    @property
    def path(self) -> Path:
        """The path of a place on a disk."""
        assert not self.is_remote
        return Path(os.path.expanduser(self.name))

    def exists(self) -> bool:
        return self.path.exists() if not self.is_remote else self._try(self._fs.exists)

    def stored(self) -> Stored:
        """What a file is; the size is 0 where a web server does not tell it.

        Raises:
            FileNotFoundError: it is not there.
            IsADirectoryError: it is a folder.
        """
        if not self.is_remote:
            state = self.path.stat()
            if self.path.is_dir():
                raise IsADirectoryError(self.name)
            return Stored(state.st_size, None, str(state.st_mtime_ns))
        info = self._try(self._fs.info)
        if info["type"] == "directory":
            raise IsADirectoryError(self.name)
        return _stored(info)

    def files(self) -> dict[str, Stored]:
        """The files under this folder, by their path in it; none if there is no such folder. Files
        may be written or removed meanwhile."""
        if not self.is_remote:
            files = (Path(top, name) for top, _, names in os.walk(self.path) for name in names)
            kept = {}
            for file in files:
                with contextlib.suppress(FileNotFoundError):
                    kept[file.relative_to(self.path).as_posix()] = Place(str(file)).stored()
            return kept
        self._fs.invalidate_cache()
        found = self._try(lambda path: self._fs.find(path, detail=True))
        start = len(self._in_fs.rstrip("/")) + 1
        return {name[start:]: _stored(info) for name, info in found.items() if name[start:]}

    def glob(self) -> dict[str, Stored]:
        """The files that this pattern matches, by their names, sorted."""
        self._fs.invalidate_cache()
        found = self._try(lambda path: self._fs.glob(path, detail=True))
        files = {name: info for name, info in found.items() if info["type"] == "file"}
        return {self._fs.unstrip_protocol(name): _stored(files[name]) for name in sorted(files)}

    def read(self, start: int | None = None, end: int | None = None) -> bytes:
        """The file, or its bytes [start, end); fewer where the file ends.

        Raises:
            FileNotFoundError: it is not there.
        """
        if not self.is_remote:
            with self.path.open("rb") as file:
                file.seek(start or 0)
                return file.read() if end is None else file.read(end - (start or 0))
        if self.is_on_the_web and end is not None:
            return self._try(lambda path: self._range_of_the_web(path, start or 0, end))
        # Where fsspec opens the file to read a part of it, it would read ahead each time.
        options = {} if end is None or self._fs.async_impl else {"cache_type": "none"}
        return self._try(lambda path: self._fs.cat_file(path, start=start, end=end, **options))

    def sha256(self) -> str:
        """The hash of the file, which is read for it.

        Raises:
            FileNotFoundError: it is not there.
        """
        with self.open() as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def write(self, data: bytes) -> None:
        """Write the file whole or not at all."""
        if self.is_remote:
            self._try(lambda path: self._fs.pipe_file(path, data))
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}.partial")
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)

    def take(self, file: Path) -> None:
        """Move a finished file here, whole or not at all; to a disk, from the same disk."""
        if self.is_remote:
            self._try(lambda path: self._fs.put_file(str(file), path))
            file.unlink()
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file.replace(self.path)

    def remove(self) -> None:
        """Remove the file, if it is there."""
        if not self.is_remote:
            self.path.unlink(missing_ok=True)
        elif self.exists():
            self._try(self._fs.rm_file)

    def open(self) -> io.BufferedReader:
        """The file as a stream that survives lost connections; it can be sought in, unless a web
        server gives files only from their beginnings.

        Raises:
            FileNotFoundError: it is not there.
        """
        if not self.is_remote:
            return self.path.open("rb")
        size = self.stored().bytes
        if self.is_on_the_web and not self._has_ranges(size):
            return io.BufferedReader(_FromTheBeginning(self), READ_AHEAD)
        return io.BufferedReader(_Ranges(self, size), READ_AHEAD)

    def _has_ranges(self, size: int) -> bool:
        try:
            return size > 0 and len(self.read(size - 1, size)) == 1
        except ValueError:  # the server sent another part than was asked for
            return False

    def _range_of_the_web(self, path: str, start: int, end: int) -> bytes:
        if start >= end:
            return b""
        with self._fs.open(path, block_size=READ_AHEAD, cache_type="none", size=end) as file:
            file.seek(start)
            return file.read(end - start)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        import fsspec

        scheme = self.name.partition("://")[0] if self.is_remote else "file"
        package, extra = EXTRAS.get(scheme, (None, ""))
        if package and importlib.util.find_spec(package) is None:
            raise UserError(f"{self.name}: to reach it, pip install 'jaxformer[{extra}]'")
        if fault := fault_of_url(self.name):
            raise UserError(fault)
        try:
            if self.is_on_the_web:
                return fsspec.core.url_to_fs(self.name, client_kwargs=_web_client())
            return fsspec.core.url_to_fs(self.name if self.is_remote else str(self.path))
        except ImportError as error:
            raise UserError(
                f"{self.name}: to reach it, another package is needed: {error}"
            ) from None

    @property
    def _fs(self) -> Any:
        return self._opened[0]

    @property
    def _in_fs(self) -> str:
        return self._opened[1]

    def _try(self, action: Callable[[str], T]) -> T:
        """`action` on the path, again for as long as PATIENCE_SECONDS allow."""
        path = self._in_fs
        give_up, wait = time.monotonic() + PATIENCE_SECONDS, FIRST_WAIT_SECONDS
        said = False
        while True:
            try:
                return action(path)
            except Exception as error:  # each package has its own
                cause = root_cause(error)
                if isinstance(cause, PermissionError):
                    raise self._denied(cause) from None
                if isinstance(cause, TOLD_AT_ONCE):
                    raise
                if not self.is_remote or not may_pass(cause):
                    if is_denied(cause):
                        raise self._denied(cause) from None
                    if code := status_code(cause):
                        raise UserError(
                            f"{self.name}: its server answers {code} ({first_line(cause)}); "
                            f"check the address"
                        ) from None
                    raise
                if time.monotonic() + wait > give_up:
                    raise Unreachable(
                        f"{self.name} could not be reached for {PATIENCE_SECONDS:.0f} s: "
                        f"{first_line(cause)}"
                    ) from error
                if not said:
                    said = True
                    say(
                        f"{self.name} does not answer ({first_line(cause)}); it is asked again for "
                        f"up to {PATIENCE_SECONDS:.0f} s"
                    )
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    def _denied(self, error: BaseException) -> UserError:
        return UserError(
            f"{self.name}: access is denied ({first_line(error)}); check the credentials of this "
            f"machine and the permissions on the bucket or folder"
        )


class _Ranges(io.RawIOBase):
    """A remote file, read a range at a time."""

    def __init__(self, place: Place, size: int) -> None:
        self._place, self._size, self._at = place, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._read(min(self._at + len(buffer), self._size))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._read(self._size)

    def _read(self, end: int) -> bytes:
        if end <= self._at:
            return b""
        data = self._place.read(self._at, end)
        if not data:
            raise EOFError(f"it ends after {self._at:,} of {self._size:,} bytes")
        self._at += len(data)
        return data


class _FromTheBeginning(io.RawIOBase):
    """A file of a web server that knows no ranges; read again from its beginning where the
    connection is lost."""

    def __init__(self, place: Place) -> None:
        self._place, self._at = place, 0
        self._stream: Any = None

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        filled = 0
        while filled < len(buffer):
            left = len(buffer) - filled
            data = self._place._try(partial(self._next, size=left))
            if not data:
                break
            buffer[filled : filled + len(data)] = data
            filled += len(data)
        return filled

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        super().close()

    def _next(self, path: str, size: int) -> bytes:
        try:
            if self._stream is None:
                self._stream = self._place._fs.open(path, block_size=0)
                left = self._at
                while left and (passed := len(self._stream.read(min(left, READ_AHEAD)))):
                    left -= passed
            data = self._stream.read(size)
        except Exception:
            self._stream = None
            raise
        self._at += len(data)
        return data


def _web_client() -> dict[str, Any]:
    """Files come as they are stored, however long they take."""
    import aiohttp

    return {
        "auto_decompress": False,
        "headers": {"Accept-Encoding": "identity"},
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60),
    }


def _stored(info: Any) -> Stored:
    md5 = info.get("md5Hash")
    if md5 is not None:
        md5 = base64.b64decode(md5).hex()
    elif re.fullmatch(r'"?[0-9a-f]{32}"?', str(info.get("ETag"))):  # S3, in one part
        md5 = info["ETag"].strip('"')
    names = (
        "generation",
        "ETag",
        "etag",
        "mtime",
        "LastModified",
        "last_modified",
        "Last-Modified",
    )
    version = next((str(info[name]) for name in names if info.get(name)), "")
    return Stored(int(info.get("size") or 0), md5, version)
