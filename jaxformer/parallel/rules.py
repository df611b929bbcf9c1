"""Where every array lies: one table from logical axis to mesh axes, and what follows from it."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxformer.errors import DoesNotFit
from jaxformer.parallel.mesh import DATA_AXES, data_shards

MeshAxes = str | tuple[str, ...] | None
Rules = tuple[tuple[str, MeshAxes], ...]

# Weights that all tokens read are split over the devices of `expert` as over those of `fsdp`.
FULLY: tuple[Literal["fsdp"], Literal["expert"]] = ("fsdp", "expert")

# Earlier lines win where two logical axes of one array ask for the same mesh axis: an activation
# [batch, length, d_model] gives `fsdp` to its rows, a weight [d_model, d_hidden] to its input.
RULES: Rules = (
    ("batch", DATA_AXES),
    ("patch", None),
    ("down", None),  # of a convolution over pictures, as the next three
    ("across", None),
    ("pixel", None),
    ("channels", None),
    ("mels", None),
    ("length", None),  # cut over `context` by hand, see context.py
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("d_hidden", "tensor"),
    ("experts", "expert"),
    ("choices", None),  # a router's outputs, and weights that tokens choose
    ("classes", None),
    ("numbers", None),  # that stand at a place, and are predicted
    ("d_model", FULLY),
    ("latent", FULLY),  # of latent attention, where it is a matrix's input
    ("vector", None),  # d_model of a scale: it would save little memory for its collectives
    ("head_dim", None),
    ("width", None),
    ("rank", None),
    ("adapter", None),
    ("group", None),
    ("steps", None),
    ("branch", None),
    ("stream", None),  # of a residual with several
    ("into_stream", None),
    ("head_input", None),
    ("state", None),
    ("gates", None),
    ("buckets", None),  # of distances
    ("layers", "stage"),
)

# What their mesh axes do not divide stays whole on every device.
OR_WHOLE = ("vocab", "latent")

PyTree = Any


def overridden(overrides: Mapping[str, MeshAxes]) -> Rules:
    """`RULES` with other mesh axes for some logical ones; `latent` follows `d_model`."""
    follows = {"latent": "d_model"}
    return tuple((name, overrides.get(follows.get(name, name), axes)) for name, axes in RULES)


@contextlib.contextmanager
def use_mesh(mesh: Mesh, rules: Rules = RULES) -> Iterator[None]:
    """Within it, logical names on activations are constraints on this mesh."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


def constrain_tokens(x: jax.Array, features: str) -> jax.Array:
    """Keep activations [batch, length, features], merged or not, where `RULES` put them."""
    names = ("batch", "length", features) if x.ndim == 3 else ("batch", features)
    return nn.with_logical_constraint(x, names)


def mesh_axes(*names: str) -> PartitionSpec:
    """The mesh axes that activations with these logical axes lie over, within `use_mesh`."""
    return nn.logical_to_mesh_axes(names)


def logical_axes(boxed: PyTree) -> PyTree:
    """The logical axis names of every parameter, as PartitionSpec leaves of the unboxed tree.

    Raises:
        ValueError: a parameter lacks a name for one of its dimensions.
    """
    axes = nn.get_partition_spec(boxed)
    shapes, _ = jax.tree.flatten_with_path(meta.unbox(boxed))
    for (path, leaf), spec in zip(shapes, jax.tree.leaves(axes), strict=True):
        if len(spec) != leaf.ndim:
            raise ValueError(
                f"parameter {path_name(path)} {list(leaf.shape)} has the logical axes "
                f"{tuple(spec)}; name each dimension (nn.with_logical_partitioning)"
            )
    return axes


def path_name(path: tuple) -> str:
    """`layers/mixer/query/kernel`"""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def parts_of(sizes: Mapping[str, int], axes: MeshAxes) -> int:
    """Into how many parts the mesh axes `axes` split an array's axis."""
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(sizes.get(axis, 1) for axis in axes)


def pad_vocabulary(head: jax.Array) -> jax.Array:
    """A head [d_model, vocab], padded with columns of zeros until the mesh divides it, and split:
    so products with a head that lies whole on every device are split too. Call within `use_mesh`.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    (axes,) = mesh_axes("vocab")
    missing = -head.shape[1] % parts_of(sizes, axes)
    if not missing:
        return head
    # The gradient is brought together here, once, and not in every array of the optimizer.
    whole = nn.with_logical_constraint(head, ("d_model", None))
    padded = jnp.pad(whole, ((0, 0), (0, missing)))
    return nn.with_logical_constraint(padded, ("d_model", "vocab"))


def parameter_shardings(mesh: Mesh, boxed: PyTree, rules: Rules = RULES) -> PyTree:
    """The sharding of every parameter, for the (abstract) parameters as `init` returns them.

    What is in `OR_WHOLE` stays whole where its mesh axes do not divide it, see `pad_vocabulary`: a
    checkpoint has the same arrays whatever the mesh. What is split `FULLY` leaves `expert` to other
    dimensions of the same array, such as that of experts, and is whole over it where it is not
    divisible.

    Raises:
        DoesNotFit: dimensions that their mesh axes do not divide, all of them listed.
    """

    def divided(size: int, axes: MeshAxes) -> bool:
        return size % parts_of(mesh.shape, axes) == 0

    def place(leaf: Any, names: PartitionSpec) -> NamedSharding:
        sizes = dict(zip(names, leaf.shape, strict=True))
        given = [axes for name, axes in rules if name in sizes and axes != FULLY]
        taken = mesh.shape["expert"] == 1 or any("expert" in (axes or ()) for axes in given)

        def fitting(name: str, axes: MeshAxes) -> MeshAxes:
            if axes == FULLY and (taken or not divided(sizes[name], axes)):
                axes = "fsdp"
            return axes if name not in OR_WHOLE or divided(sizes[name], axes) else None

        table = tuple((name, fitting(name, axes)) for name, axes in rules if name in sizes)
        spec = nn.logical_to_mesh_axes(names, table)
        return NamedSharding(mesh, rows_before_lanes(names, spec, leaf.shape, mesh.shape))

    shardings = jax.tree.map(place, meta.unbox(boxed), logical_axes(boxed))
    faults = []
    shapes, _ = jax.tree.flatten_with_path(meta.unbox(boxed))
    for (path, leaf), sharding in zip(shapes, jax.tree.leaves(shardings), strict=True):
        faults += _uneven(path_name(path), leaf, sharding)
    if faults:
        raise DoesNotFit(
            "the mesh does not divide these parameters; change the mesh or the model's widths:\n  "
            + "\n  ".join(faults)
        )
    return shardings


def rows_before_lanes(
    names: PartitionSpec, spec: PartitionSpec, shape: Sequence[int], sizes: Mapping[str, int]
) -> PartitionSpec:
    """`spec`, but for experts' output matrices [..., d_hidden, d_model]: rather than the last axis,
    `fsdp` cuts the one before, if it divides it. TPUs pad the last axis of every part to 128, and
    what is gathered along it they write twice."""
    if "experts" not in names or tuple(names)[-2:] != ("d_hidden", "d_model"):
        return spec
    *others, before, last = spec
    axes = ((before,) if isinstance(before, str) else before or ()) + ("fsdp",)
    parts = math.prod(sizes.get(axis, 1) for axis in axes)
    if last != "fsdp" or shape[-2] % parts:
        return spec
    return PartitionSpec(*others, axes if len(axes) > 1 else "fsdp", None)


def _uneven(name: str, leaf: Any, sharding: NamedSharding) -> list[str]:
    faults = []
    for dimension, axes in enumerate(sharding.spec):
        axes = (axes,) if isinstance(axes, str) else axes or ()
        parts = math.prod(sharding.mesh.shape[axis] for axis in axes)
        if leaf.shape[dimension] % parts:
            faults.append(
                f"{name} {list(leaf.shape)}: dimension {dimension} is {leaf.shape[dimension]}, "
                f"not divisible by mesh {' × '.join(axes)} = {parts}"
            )
    return faults


def like_parameters(mesh: Mesh, parameters: PyTree, shardings: PyTree, state: PyTree) -> PyTree:
    """Shardings for a state derived from the parameters, such as an optimizer's.

    A leaf whose path ends as a parameter's does, and which has its shape, lies where the parameter
    does; every other leaf (counts, factored moments) is on all devices.
    """
    places = {}
    for (path, leaf), sharding in zip(
        jax.tree.flatten_with_path(parameters)[0], jax.tree.leaves(shardings), strict=True
    ):
        places[path] = (leaf.shape, sharding)

    def place(path: tuple, leaf: Any) -> NamedSharding:
        for start in range(len(path)):
            shape, sharding = places.get(path[start:], (None, None))
            if sharding is not None and shape == leaf.shape:
                return sharding
        return replicated(mesh)

    return jax.tree.map_with_path(place, state)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays [rows, length, ...]: rows over the data axes, positions over `context`."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXES, "context"))


def of_batch(sharding: NamedSharding, batch: PyTree) -> PyTree:
    """The sharding of every array of a batch, given `batch_sharding`: what a row has one of, such
    as its class, is whole over `context`."""
    whole = NamedSharding(sharding.mesh, PartitionSpec(DATA_AXES))
    return jax.tree.map(lambda array: whole if array.shape[1] == 1 else sharding, batch)


def rows_held(sharding: NamedSharding, rows: int) -> np.ndarray:
    """Which of the `rows` of a batch this process's devices hold, whole or in part; ascending.

    They need not be adjacent. Processes that the mesh joins along `context` or `tensor` hold the
    same rows.
    """
    shape = (rows, sharding.mesh.shape["context"])
    pieces = sharding.addressable_devices_indices_map(shape).values()
    return np.unique(np.concatenate([np.arange(rows)[piece[0]] for piece in pieces if piece]))


def put_batch(batch: PyTree, sharding: NamedSharding) -> PyTree:
    """The global arrays [rows, length, ...], from the rows that this process holds."""
    if jax.process_count() == 1:
        return jax.device_put(batch, of_batch(sharding, batch))
    shards = data_shards(sharding.mesh.shape)
    held = rows_held(sharding, shards)  # as if a shard had one row

    def put(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
        size = len(x) // len(held)  # rows of a shard

        def piece(index: Any) -> np.ndarray:
            place = np.searchsorted(held, (index[0].start or 0) // size)
            return x[place * size : (place + 1) * size, *index[1:]]

        return jax.make_array_from_callback((size * shards, *x.shape[1:]), sharding, piece)

    return jax.tree.map(put, batch, of_batch(sharding, batch))


def put_rows(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """An array [rows, ...] that every process has, with its rows over the data axes where these
    divide them, and whole on every device otherwise."""
    divided = len(array) % data_shards(mesh.shape) == 0
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXES if divided else None))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def whole(array: jax.Array) -> np.ndarray:
    """The whole array, in every process."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def bytes_per_device(abstract: PyTree, shardings: PyTree) -> int:
    """What one device holds of a tree placed by `shardings`."""
    sizes = jax.tree.map(
        lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
        abstract,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))
