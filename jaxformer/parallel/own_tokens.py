"""Functions that every device computes of its own tokens of a batch: rows are split over the data
axes, and each row over `context`."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
from jax.sharding import PartitionSpec

from jaxformer.ops.shards import AXIS as CONTEXT
from jaxformer.parallel.mesh import DATA_AXES
from jaxformer.parallel.rules import FULLY

TOKEN_AXES = (*DATA_AXES, CONTEXT)

PyTree = Any
Sums = TypeVar("Sums")
Arrays = TypeVar("Arrays")
Out = TypeVar("Out")


def over_rows(sums: Callable[..., Sums]) -> Callable[..., Sums]:
    """`sums(weights, *arrays)`, which every device computes of its own tokens of the arrays
    [rows, length, ...], added up over the devices.

    The weights, a tree of arrays [d_model, ...], are gathered once before, and their gradients are
    reduced and scattered once after, both in the type of the first array, as those of a layer are.
    Left to the compiler, a loop within `sums` would do both in every iteration.
    """

    def added(*arrays: jax.Array) -> Sums:
        return jax.lax.psum(sums(*arrays), TOKEN_AXES)

    return _of_own_rows(added, sums, PartitionSpec())


def by_rows(function: Callable[..., Arrays]) -> Callable[..., Arrays]:
    """Like `over_rows`, for a function that returns arrays [rows, length, ...]."""
    return _of_own_rows(function, function, PartitionSpec(DATA_AXES, CONTEXT))


def _of_own_rows(
    sharded: Callable[..., Out], alone: Callable[..., Out], out: PartitionSpec
) -> Callable[..., Out]:
    """`sharded` of every device's tokens where they are split over several, else `alone`."""

    def mapped(weights: PyTree, *arrays: jax.Array) -> Out:
        mesh = jax.sharding.get_abstract_mesh()
        if all(mesh.shape.get(axis, 1) == 1 for axis in TOKEN_AXES):
            return alone(weights, *arrays)
        devices = math.prod(mesh.shape[axis] for axis in FULLY)
        widths = [len(weight) for weight in jax.tree.leaves(weights)]
        over: tuple[str, ...] = (
            FULLY if all(width % devices == 0 for width in widths) else ("fsdp",)
        )

        def of_own_rows(weights: PyTree, *arrays: jax.Array) -> Out:
            def whole(weight: jax.Array) -> jax.Array:
                return gather(weight.astype(arrays[0].dtype), 0, over).astype(weight.dtype)

            return sharded(jax.tree.map(whole, weights), *arrays)

        tokens = PartitionSpec(DATA_AXES, CONTEXT)
        return jax.shard_map(
            of_own_rows,
            in_specs=(PartitionSpec(over), *(tokens for _ in arrays)),
            out_specs=out,
            axis_names=set(TOKEN_AXES),
            check_vma=False,
        )(weights, *arrays)

    return mapped


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(part: jax.Array, axis: int, over: tuple[str, ...]) -> jax.Array:
    """The whole of a weight that is split along `axis` over these mesh axes; its gradient is
    reduced and scattered."""
    return jax.lax.all_gather(part, over, axis=axis, tiled=True)


def _scatter(axis: int, over: tuple[str, ...], _: None, whole: jax.Array) -> tuple[jax.Array]:
    """Reduce and scatter in stages of up to four devices, one per side of a torus: over all three
    sides at once, the TPU compiler (libtpu 0.0.50) sends twice as much, the whole sum to everyone.
    """
    for name in over:
        size = stride = jax.lax.axis_size(name)
        while stride > 1:
            side = math.gcd(stride, 4) if stride % 2 == 0 else stride
            stride //= side
            firsts = (index for index in range(size) if index // stride % side == 0)
            groups = [[first + stride * place for place in range(side)] for first in firsts]
            whole = jax.lax.psum_scatter(
                whole, name, scatter_dimension=axis, axis_index_groups=groups, tiled=True
            )
    return (whole,)


gather.defvjp(lambda part, axis, over: (gather(part, axis, over), None), _scatter)
