"""Files of tensors in the safetensors format: eight bytes of length, a JSON header, raw bytes.

The format: github.com/huggingface/safetensors, whose library checks and reads the header. Tensors
are read here, because numpy lacks some of their types, and to let the system prefetch the next.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxformer.checkpoint.interop.source import TensorInfo
from jaxformer.errors import UserError

LFS_POINTER = b"version https://git-lfs"
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
        """This tensor; nothing else is read into memory."""
        count = math.prod(self.info.shape)
        flat = np.fromfile(self.file, self.info.dtype, count, offset=self.start)
        if len(flat) != count:
            raise UserError(f"{self.file} ended while it was read; fetch it again")
        return flat.reshape(self.info.shape)

    def fetch(self) -> None:
        """Ask the system, where it can, to prefetch the tensor into its cache."""
        if hasattr(os, "posix_fadvise"):
            with self.file.open("rb") as file:
                os.posix_fadvise(file.fileno(), self.start, self.bytes, os.POSIX_FADV_WILLNEED)


def read_header(file: Path) -> dict[str, Place]:
    """The tensors of a file in the order of their bytes, which are not read.

    Raises:
        UserError: the header does not match the file, or a dtype is unknown.
    """
    with file.open("rb") as stream:
        head = stream.read(len(LFS_POINTER))
    if head == LFS_POINTER:
        raise UserError(f"{file} is a pointer of Git LFS to the weights; run git lfs pull")
    end = 8 + int.from_bytes(head[:8], "little")
    try:
        with safe_open(file, "numpy") as tensors:
            slices = [(name, tensors.get_slice(name)) for name in tensors.offset_keys()]
    except SafetensorError as error:
        raise UserError(
            f"{file} is damaged or no safetensors file: {error}; fetch it again"
        ) from None
    places: dict[str, Place] = {}
    for name, tensor in slices:  # one after the other, with no gaps
        code = tensor.get_dtype()
        if code not in DTYPES:
            raise UserError(f"{file}: '{name}' has the dtype '{code}'; known: {', '.join(DTYPES)}")
        info = TensorInfo(tuple(tensor.get_shape()), DTYPES[code].name)
        places[name] = Place(file, end, info)
        end += size_of(info)
    return places


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
            stream.writelines(piece.reshape(-1).view(np.uint8).data for piece in pieces)
