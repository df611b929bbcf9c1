"""File formats, told by the first bytes: names mislead, and decoders' errors say little."""

import codecs
import os
import stat
from collections.abc import Mapping
from pathlib import Path

HEAD = 512  # bytes looked at
COMPRESSED = {
    "gzip": (b"\x1f\x8b",),
    "bzip2": tuple(b"BZh%d" % level + b"1AY&SY" for level in range(1, 10)),
    "xz": (b"\xfd7zXZ\x00",),
    "Zstandard": (b"\x28\xb5\x2f\xfd", *(b"%c\x2a\x4d\x18" % kind for kind in range(0x50, 0x60))),
}
# UTF-32 first: its little-endian mark begins with that of UTF-16.
_ENCODINGS = {
    "UTF-32": (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff"),
    "UTF-16": (b"\xff\xfe", b"\xfe\xff"),
}
_OTHERS = {
    "a zip archive": (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"),
    "a 7z archive": (b"7z\xbc\xaf\x27\x1c",),
    "a RAR archive": (b"Rar!\x1a\x07",),
    "an LZ4 file": (b"\x04\x22\x4d\x18",),
    "a Snappy file": (b"\xff\x06\x00\x00sNaPpY",),
    "an lzip file": (b"LZIP\x01",),
    "a compress (.Z) file": (b"\x1f\x9d",),
    "a Parquet file": (b"PAR1",),
    "an Arrow file": (b"ARROW1\x00\x00", b"\xff\xff\xff\xff"),
    "an ORC file": (b"ORC",),
    "an Avro file": (b"Obj\x01",),
    "an SQLite database": (b"SQLite format 3\x00",),
    "an HDF5 file": (b"\x89HDF\r\n\x1a\n",),
    "a NumPy file": (b"\x93NUMPY",),
    "a GGUF file": (b"GGUF",),
    "a PDF": (b"%PDF-",),
    "a PNG image": (b"\x89PNG\r\n\x1a\n",),
    "a JPEG image": (b"\xff\xd8\xff",),
    "a GIF image": (b"GIF87a", b"GIF89a"),
    "a RIFF file (WAV, WebP or AVI)": (b"RIFF",),
    "an MP3 file": (b"ID3",),
    "a program (ELF)": (b"\x7fELF",),
    "an old Office document": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",),
}


def compression_of(head: bytes) -> str | None:
    """gzip, bzip2, xz or Zstandard, or None for anything else."""
    return _named(head, COMPRESSED)


def encoding_of(head: bytes) -> str | None:
    """UTF-16 or UTF-32, where a byte order mark says so."""
    return _named(head, _ENCODINGS)


def binary_format_of(head: bytes) -> str | None:
    """The format of a file that is not text, with its article; None if it is unknown.

    A file that begins as valid text is text, even if it begins with a mark made of letters.
    """
    if _is_text(head):
        return None
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < 1 << 32:
        return "a safetensors file"
    return _named(head, _OTHERS)


def irregular(path: Path) -> str | None:
    """What a path on a disk is, if it exists and is neither a file nor a folder: reading a named
    pipe would block, and a device never ends. Pipes that the shell has opened count as files."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    if stat.S_ISFIFO(mode) and path.parent != Path("/dev/fd") and path != Path("/dev/stdin"):
        return "a named pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return "a device"
    return None


def _named(head: bytes, marks: Mapping[str, tuple[bytes, ...]]) -> str | None:
    return next((name for name, starts in marks.items() if head.startswith(starts)), None)


def _is_text(head: bytes) -> bool:
    if any(byte < 32 and byte not in b"\t\n\v\f\r\x1b\b" for byte in head):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return True
