"""Functions of rows that are cut over the mesh axis `context`."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from jaxformer.ops.shards import AXIS
from jaxformer.schema import UserError


def over_context(of_rows: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`of_rows(params, keys, *arrays)` where every device has its piece of the arrays
    [rows, length, ...] and of the result; on a mesh without `context`, `of_rows`.

    What it calls sees its piece [rows, length / context, ...] of every array, finds the others
    through `ops.shards`, has random keys of its own, and leaves all other mesh axes to the
    compiler.
    """

    def of_piece(params: object, keys: dict[str, jax.Array], *arrays: jax.Array) -> jax.Array:
        own = {
            name: jax.random.fold_in(key, jax.lax.axis_index(AXIS)) for name, key in keys.items()
        }
        return of_rows(params, own, *arrays)

    def whole(params: object, keys: dict[str, jax.Array], *arrays: jax.Array) -> jax.Array:
        if jax.sharding.get_abstract_mesh().shape.get(AXIS, 1) == 1:
            return of_rows(params, keys, *arrays)
        pieces = PartitionSpec(None, AXIS)
        return jax.shard_map(
            of_piece,
            in_specs=(PartitionSpec(), PartitionSpec(), *(pieces for _ in arrays)),
            out_specs=pieces,
            axis_names={AXIS},
            check_vma=False,
        )(params, keys, *arrays)

    return whole


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
