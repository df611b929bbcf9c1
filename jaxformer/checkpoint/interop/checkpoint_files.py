"""A checkpoint's arrays in Orbax's format, read and written one layer at a time.

Parameters are stacked over the layers, and those of experts over the experts as well. They are
written in pieces of one layer and expert or less, without compression (zarr version 2,
zarr-specs.readthedocs.io), so that no more than one layer's part of one array has to be in memory,
and read in such pieces from any checkpoint.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from jaxformer.checkpoint.interop.blocks import contiguous_blocks
from jaxformer.checkpoint.interop.rules import Shape
from jaxformer.model.accounting import ENCODER_PATH
from jaxformer.model.trunk_config import TrunkConfig
from jaxformer.paths import is_remote
from jaxformer.reading import read_json_object

Place = tuple[int, ...]  # indices of an array's first axes

PIECE = 1 << 26  # bytes per file: of larger ones, devices would read parts that they do not need


def leaf_of(path: str, model: TrunkConfig) -> tuple[str, Place]:
    """`layers/3/mixer/skip` → the stacked array that it is a part of, and its place there, which is
    () for the whole of an array. `#5` at the end of a path is the part of expert 5; `encoder/` at
    its beginning is that of the model's encoder.
    """
    encoder = getattr(model, "encoder", None)
    if encoder is not None and path.startswith(ENCODER_PATH):
        leaf, place = leaf_of(path.removeprefix(ENCODER_PATH), encoder)
        return ENCODER_PATH + leaf, place
    path, _, expert = path.partition("#")
    own = (int(expert),) if expert else ()
    if not path.startswith("layers/"):
        return path, own
    _, number, rest = path.split("/", 2)
    first = len(model.first)
    if int(number) < first:
        return f"stack/first/layer_{number}/{rest}", own
    repetition, entry = divmod(int(number) - first, len(model.pattern))
    if repetition == (model.num_layers - first) // len(model.pattern):
        return f"stack/tail/layer_{entry}/{rest}", own
    return f"stack/groups/layer_{entry}/{rest}", (repetition, *own)


def _stacked(path: str) -> int:
    """How many axes of an array stack what is read and written one by one: layers, and experts."""
    in_groups = path.removeprefix(ENCODER_PATH).startswith("stack/groups/")
    return in_groups + ("/experts_" in path)


class ParameterWriter:
    """Writes float32 arrays of the given shapes to `folder`, stacked ones in pieces of a layer, and
    of an expert."""

    def __init__(self, folder: Path, shapes: Mapping[str, Shape]) -> None:
        self._folder, self._shapes = folder, shapes
        self.hashes: dict[str, str] = {}  # SHA-256 of what was written, by the file's place
        for path, shape in shapes.items():
            self._array(path).mkdir(parents=True)
            description = {
                "zarr_format": 2,
                "shape": shape,
                "chunks": self._piece_shape(path),
                "dtype": "<f4",
                "order": "C",
                "compressor": None,
                "filters": None,
                "fill_value": None,
                "dimension_separator": ".",
            }
            (self._array(path) / ".zarray").write_text(json.dumps(description))

    def write(self, path: str, place: Place, values: np.ndarray) -> None:
        """Write the part of an array at `place`: all of its parts of a layer, and of an expert."""
        if len(place) < _stacked(path):
            for number, part in enumerate(values):
                self.write(path, (*place, number), part)
            return
        ndim = len(self._shapes[path])
        first = list(place)
        rows = self._piece_shape(path)[len(first)] if values.ndim else 1
        parts = range(0, len(values), rows) if values.ndim else [0]
        for number, start in enumerate(parts):
            index = [*first, number, *[0] * ndim][: max(ndim, 1)]
            part = values[start : start + rows] if values.ndim else values
            name, digest = self._array(path) / ".".join(map(str, index)), hashlib.sha256()
            with name.open("wb") as file, ThreadPoolExecutor(1, "sha256") as pool:
                for block in contiguous_blocks(part, np.float32):
                    hashing = pool.submit(digest.update, block.data)
                    file.write(block.data)
                    hashing.result()
            self.hashes[name.relative_to(self._folder).as_posix()] = digest.hexdigest()

    def finish(self) -> None:
        """Write the metadata that Orbax needs."""
        tree = {
            str(tuple(path.split("/"))): {
                "key_metadata": [{"key": key, "key_type": 2} for key in path.split("/")],
                "value_metadata": {
                    "value_type": "jax.Array",
                    "skip_deserialize": False,
                    "write_shape": self._piece_shape(path),
                },
            }
            for path in self._shapes
        }
        metadata = {
            "tree_metadata": tree,
            "use_ocdbt": False,
            "use_zarr3": False,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None,
        }
        (self._folder / "_METADATA").write_text(json.dumps(metadata))

    def _array(self, path: str) -> Path:
        return self._folder / path.replace("/", ".")

    def _piece_shape(self, path: str) -> list[int]:
        """At most a layer, in parts of whole rows that fit into PIECE where they divide it."""
        shape = list(self._shapes[path])
        first = _stacked(path)
        shape[:first] = [1] * first
        if len(shape) > first:
            room = PIECE // (4 * math.prod(shape[first + 1 :]))
            shape[first] = _divisor(shape[first], max(room, 1))
        return shape


def _divisor(count: int, room: int) -> int:
    """The largest divisor of `count` that is no larger than `room`, or `count` if that divisor is
    less than an eighth of `room`."""
    best = next(each for each in range(min(count, room), 0, -1) if count % each == 0)
    return best if 8 * best >= min(count, room) else count


class ParameterReader:
    """The arrays of a checkpoint's item in `folder`, written by Orbax or by `ParameterWriter`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        metadata = folder / "_METADATA"
        self._in_one_store = read_json_object(metadata.read_bytes(), str(metadata))["use_ocdbt"]
        self._open = lru_cache(maxsize=4)(self._open_array)

    def read(self, path: str, place: Place) -> np.ndarray:
        """The part of an array at `place`."""
        array = self._open(path)
        return (array[place] if place else array).read().result()

    def _open_array(self, path: str) -> Any:
        """Open an array. Pieces of several layers, as Orbax writes them, stay in memory while the
        array is among the last that were read."""
        array: Any = tensorstore.open(self._place(path)).result()
        if array.ndim and array.chunk_layout.read_chunk.shape[0] > 1:
            room = array.size * array.dtype.numpy_dtype.itemsize + (1 << 20)
            context = tensorstore.Context({"cache_pool": {"total_bytes_limit": room}})
            array = tensorstore.open(self._place(path), context=context).result()
        return array

    def _place(self, path: str) -> dict[str, Any]:
        remote = is_remote(self._folder)
        url = str(self._folder) if remote else f"file://{self._folder.resolve()}"
        name = path.replace("/", ".")
        if not self._in_one_store:
            return {"driver": "zarr", "kvstore": f"{url}/{name}/", "open": True}
        store = {"driver": "ocdbt", "base": f"{url}/", "path": f"{name}/"}
        return {"driver": "zarr", "kvstore": store, "open": True}
