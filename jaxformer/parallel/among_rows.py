"""Functions that every device computes of its own rows of a batch, and of all others as they pass
by."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import PartitionSpec

from jaxformer.parallel.mesh import DATA_AXES

PyTree = Any
Sums = TypeVar("Sums")


def among_rows(sums: Callable[..., Sums]) -> Callable[..., Sums]:
    """`sums(whole, *arrays, axes)`, added up over the devices, each of which has its own rows of
    the arrays [rows, ...] and the same `whole`. `axes` are the mesh axes over which rows are split,
    along which devices may send each other theirs."""

    def added(whole: PyTree, *arrays: PyTree) -> Sums:
        sizes = jax.sharding.get_abstract_mesh().shape
        axes = tuple(axis for axis in DATA_AXES if sizes.get(axis, 1) > 1)
        if not axes:
            return sums(whole, *arrays, axes=axes)

        def of_own_rows(whole: PyTree, *arrays: PyTree) -> Sums:
            return jax.lax.psum(sums(whole, *arrays, axes=axes), axes)

        return jax.shard_map(
            of_own_rows,
            in_specs=(PartitionSpec(), *(PartitionSpec(axes) for _ in arrays)),
            out_specs=PartitionSpec(),
            axis_names=set(axes),
            check_vma=False,
        )(whole, *arrays)

    return added
