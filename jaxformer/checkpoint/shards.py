"""The parts of arrays that the devices of one process hold, as files and back.

A part is named by its array and by where it lies in it, such as `params/embedding@0:257,8:16`.
Processes that hold the same part hold equal bytes of it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxformer.checkpoint.interop.safetensors import Place, write_file
from jaxformer.checkpoint.interop.source import TensorInfo
from jaxformer.parallel.rules import path_name

PyTree = Any
Trees = Mapping[str, PyTree]


def copied_shards(trees: Trees) -> dict[str, np.ndarray]:
    """The parts that this process holds, copied to the host, each once."""
    shards = {
        _name(path, leaf.shape, shard.index): shard.data
        for path, leaf in _leaves(trees)
        for shard in leaf.addressable_shards
    }
    for data in shards.values():
        data.copy_to_host_async()
    return {name: np.array(data, copy=True) for name, data in shards.items()}


class Part(NamedTuple):
    """Shape and dtype of a part, and the processes whose devices hold it."""

    info: TensorInfo
    held_by: set[int]


def parts_of(trees: Trees) -> dict[str, Part]:
    """All parts, by name, of arrays that are placed so."""
    found: dict[str, Part] = {}
    for path, leaf in _leaves(trees):
        for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
            bounds = _bounds(leaf.shape, index)
            info = TensorInfo(tuple(stop - start for start, stop in bounds), leaf.dtype.name)
            part = found.setdefault(_name(path, leaf.shape, index), Part(info, set()))
            part.held_by.add(device.process_index)
    return found


def write_shards(file: Path, shards: Mapping[str, np.ndarray]) -> None:
    infos = {name: TensorInfo(array.shape, array.dtype.name) for name, array in shards.items()}
    values = (iter([np.ascontiguousarray(array).reshape(-1)]) for array in shards.values())
    write_file(file, infos, values)


def join_shards(wanted: Trees, places: Mapping[str, Place]) -> dict[str, PyTree]:
    """Arrays as `wanted` describes and places them: trees of ShapeDtypeStruct with shardings. Every
    part that this process needs has its place in a file."""

    def joined(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        read: dict[str, np.ndarray] = {}

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            name = _name(path, leaf.shape, index)
            if name not in read:
                read[name] = places[name].read()
            return read[name]

        return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

    leaves = [joined(path, leaf) for path, leaf in _leaves(wanted)]
    return jax.tree.unflatten(jax.tree.structure(dict(wanted)), leaves)


def _leaves(trees: Trees) -> list[tuple[str, Any]]:
    """Every leaf with its path, in the order of its tree."""
    return [(path_name(path), leaf) for path, leaf in jax.tree.flatten_with_path(dict(trees))[0]]


def _name(path: str, shape: tuple[int, ...], index: tuple[slice, ...]) -> str:
    return f"{path}@{','.join(f'{start}:{stop}' for start, stop in _bounds(shape, index))}"


def _bounds(shape: tuple[int, ...], index: tuple[slice, ...]) -> list[tuple[int, int]]:
    """Where the part begins and ends along each axis."""
    return [each.indices(size)[:2] for each, size in zip(index, shape, strict=True)]
