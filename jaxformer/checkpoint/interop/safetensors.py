"""Files of tensors in the safetensors format: eight bytes of length, a JSON header, raw bytes.

The format: github.com/huggingface/safetensors. A header is believed only as far as it adds up.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxformer.checkpoint.interop.source import TensorInfo
from jaxformer.json_reader import read_json
from jaxformer.schema import UserError

LONGEST_HEADER = 100_000_000

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def size_of(info: TensorInfo) -> int:
    """Bytes of a tensor."""
    return math.prod(info.shape) * np.dtype(info.dtype).itemsize


class Place(NamedTuple):
    """Where a tensor's bytes begin in a file."""

    file: Path
    start: int
    info: TensorInfo

    @property
    def bytes(self) -> int:
        return size_of(self.info)

    def read(self) -> np.ndarray:
        """This tensor; nothing else is brought into memory."""
        count = math.prod(self.info.shape)
        flat = np.fromfile(self.file, self.info.dtype, count, offset=self.start)
        if len(flat) != count:
            raise UserError(f"{self.file} ended while it was read; fetch it again")
        return flat.reshape(self.info.shape)

    def fetch(self) -> None:
        """Ask the system to bring it into its cache meanwhile, where it can."""
        if hasattr(os, "posix_fadvise"):
            with self.file.open("rb") as file:
                os.posix_fadvise(file.fileno(), self.start, self.bytes, os.POSIX_FADV_WILLNEED)


def read_header(file: Path) -> dict[str, Place]:
    """The tensors of a file in the order of their bytes; none of these is read.

    Raises:
        UserError: lengths, offsets, sizes or dtypes that do not add up to the file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise _lie(file, f"a header of {length} bytes in a file of {size}")
        text = stream.read(length)
    try:
        header = read_json(text, "a header that", object_of=_no_name_twice)
    except UserError as error:
        raise _lie(file, str(error)) from None
    if not isinstance(header, dict):
        raise _lie(file, "a header that is not a JSON object")
    header.pop("__metadata__", None)
    places = {name: _place(file, 8 + length, name, entry) for name, entry in header.items()}
    places = dict(sorted(places.items(), key=lambda item: (item[1].start, item[1].bytes)))
    end = 8 + length
    for name, place in places.items():
        if place.start != end:
            kind = "overlaps" if place.start < end else "leaves a gap after"
            raise _lie(file, f"'{name}', which {kind} the tensor before it")
        end += place.bytes
    if end != size:
        raise _lie(file, f"tensors up to byte {end} in a file of {size} bytes")
    return places


def _place(file: Path, begin: int, name: str, entry: Any) -> Place:
    match entry:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise _lie(file, f"'{name}' without dtype, shape and data_offsets")
    if code not in DTYPES:
        raise _lie(file, f"'{name}' with the dtype '{code}'; known: {', '.join(DTYPES)}")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise _lie(file, f"'{name}' with the shape {shape}")
    place = Place(file, begin + start, TensorInfo(tuple(shape), DTYPES[code].name))
    if start < 0 or end - start != place.bytes:
        raise _lie(
            file, f"'{name}' from byte {start} to {end}, but {code}{shape} takes {place.bytes}"
        )
    return place


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError("a name stands there twice")
    return dict(pairs)


def _lie(file: Path, what: str) -> UserError:
    return UserError(f"{file} is damaged or no safetensors file: it has {what}; fetch it again")


def write_file(
    file: Path, tensors: Mapping[str, TensorInfo], values: Iterable[Iterator[np.ndarray]]
) -> None:
    """Write `tensors`, whose `values` come in the same order, each in pieces of its bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, info in tensors.items():
        start, end = end, end + size_of(info)
        header[name] = {
            "dtype": NAMES[np.dtype(info.dtype)],
            "shape": list(info.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for pieces in values:
            stream.writelines(piece.view(np.uint8).data for piece in pieces)
