"""Sums over rows that are cut over the mesh axis `context`."""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax.sharding import PartitionSpec

from jaxformer.ops.shards import AXIS
from jaxformer.schema import UserError

Params = TypeVar("Params")
Batch = TypeVar("Batch")
Sums = TypeVar("Sums")


def over_context(sums: Callable[..., Sums]) -> Callable[..., Sums]:
    """`sums(params, batch, **rngs)` of every device's piece of the rows, added up; on a mesh
    without `context`, `sums`.

    What it calls sees its piece [rows, length / context] of every array, finds the others through
    `ops.shards`, has keys of its own, and leaves all other mesh axes to the compiler.
    """

    def of_piece(params: Params, batch: Batch, rngs: dict[str, jax.Array]) -> Sums:
        own = {
            name: jax.random.fold_in(key, jax.lax.axis_index(AXIS)) for name, key in rngs.items()
        }
        return jax.lax.psum(sums(params, batch, **own), AXIS)

    def summed(params: Params, batch: Batch, **rngs: jax.Array) -> Sums:
        if jax.sharding.get_abstract_mesh().shape.get(AXIS, 1) == 1:
            return sums(params, batch, **rngs)
        return jax.shard_map(
            of_piece,
            in_specs=(PartitionSpec(), PartitionSpec(None, AXIS), PartitionSpec()),
            out_specs=PartitionSpec(),
            axis_names={AXIS},
            check_vma=False,
        )(params, batch, rngs)

    return summed


def check_length(context: int, length: int) -> None:
    """Refuse rows that cannot be cut.

    Raises:
        UserError: the length is not divisible by 2 × context, where there is a context: attention
            deals half pieces.
    """
    parts = 2 * context
    if context > 1 and length % parts:
        raise UserError(
            f"data.sequence_length is {length}, not divisible by 2 × mesh.context = {parts}; the "
            f"nearest length that is: {max(parts, round(length / parts) * parts)}"
        )
