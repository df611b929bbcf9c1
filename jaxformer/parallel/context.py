"""Functions of rows that are cut over the mesh axis `context`."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxformer.errors import UserError
from jaxformer.ops.shards import AXIS

PyTree = Any
OfRows = Callable[..., tuple[PyTree, PyTree]]


def over_context(of_rows: OfRows) -> OfRows:
    """`of_rows(params, keys, *arrays)` → (arrays, sums), run with the arrays [rows, length, ...]
    that it takes and returns cut over `context`; the sums are added up over the devices. On a mesh
    without `context`, it is `of_rows` itself.

    On each device, `of_rows` sees a piece [rows, length / context, ...] of every array, finds the
    other pieces through `ops.shards`, has a `dropout` key of its own, and leaves all other mesh
    axes to the compiler. Other keys decide over rows, the same on every device.
    """

    def of_piece(
        params: object, keys: dict[str, jax.Array], *arrays: jax.Array
    ) -> tuple[PyTree, PyTree]:
        if "dropout" in keys:
            own = jax.random.fold_in(keys["dropout"], jax.lax.axis_index(AXIS))
            keys = keys | {"dropout": own}
        made, sums = of_rows(params, keys, *arrays)
        return made, jax.lax.psum(sums, AXIS)

    def whole(
        params: object, keys: dict[str, jax.Array], *arrays: jax.Array
    ) -> tuple[PyTree, PyTree]:
        if jax.sharding.get_abstract_mesh().shape.get(AXIS, 1) == 1:
            return of_rows(params, keys, *arrays)
        pieces = PartitionSpec(None, AXIS)
        return jax.shard_map(
            of_piece,
            in_specs=(PartitionSpec(), PartitionSpec(), *(pieces for _ in arrays)),
            out_specs=(pieces, PartitionSpec()),
            axis_names={AXIS},
            check_vma=False,
        )(params, keys, *arrays)

    return whole


def check_length(context: int, length: int, key: str = "data.sequence_length") -> None:
    """Refuse rows that cannot be cut.

    Raises:
        UserError: the length is not divisible by 2 × context, where context is above 1: attention
            deals out half pieces.
    """
    parts = 2 * context
    if context > 1 and length % parts:
        raise UserError(
            f"{key} is {length}, not divisible by 2 × mesh.context = {parts}; the "
            f"nearest length that is: {max(parts, round(length / parts) * parts)}"
        )
