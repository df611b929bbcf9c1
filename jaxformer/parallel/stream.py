"""Where the residual stream lies on a mesh with `tensor`: cut over it by tokens.

Between sub-layers, the devices of `tensor` then neither compute nor keep the same things, and send
no more bytes than for sums that all of them keep (sequence parallelism; Korthikanti et al., 2022,
arXiv:2205.05198). On other meshes, and where `tensor` does not divide the tokens, nothing changes.
"""

import math
from functools import partial

import flax.linen as nn
import jax
from jax.lax import with_sharding_constraint
from jax.sharding import PartitionSpec

from jaxformer.parallel.rules import mesh_axes

Axes = tuple[str, ...]


def constrain_stream(x: jax.Array) -> jax.Array:
    """Keep the residual stream [batch · length, ..., d_model] where it lies between sub-layers;
    several streams of a token lie together."""
    rows = _axes_of_rows(x)
    if rows is not None:
        return _cut(x, rows)
    return nn.with_logical_constraint(x, ("batch", *(None for _ in x.shape[2:]), "d_model"))


def gather_tokens(x: jax.Array) -> jax.Array:
    """The stream [batch · length, d_model] as a sub-layer reads it: all tokens of its rows."""
    rows = _axes_of_rows(x)
    return x if rows is None else _gather(x, rows)


def scatter_tokens(x: jax.Array) -> jax.Array:
    """A sub-layer's output [batch · length, d_model], a sum over `tensor`, cut as the stream is."""
    rows = _axes_of_rows(x)
    return x if rows is None else _scatter(x, rows)


def _axes_of_rows(x: jax.Array) -> Axes | None:
    """The mesh axes that rows are cut over, where `tensor` can cut their tokens further."""
    sizes = jax.sharding.get_abstract_mesh().shape
    (rows,) = mesh_axes("batch")
    rows = (rows,) if isinstance(rows, str) else rows or ()
    parts = math.prod(sizes.get(axis, 1) for axis in (*rows, "tensor"))
    return rows if sizes.get("tensor", 1) > 1 and x.shape[0] % parts == 0 else None


def _cut(x: jax.Array, rows: Axes) -> jax.Array:
    return with_sharding_constraint(x, PartitionSpec((*rows, "tensor"), None))


# Each is the other's gradient. The axes are arguments, as the rules may differ when it is computed.
@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(x: jax.Array, rows: Axes) -> jax.Array:
    return with_sharding_constraint(x, PartitionSpec(rows, None))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _scatter(x: jax.Array, rows: Axes) -> jax.Array:
    # Gathered first, or the compiler gathers the rows as well before it multiplies.
    return _cut(_gather(x, rows), rows)


_gather.defvjp(
    lambda x, rows: (_gather(x, rows), None), lambda rows, _, d_x: (_scatter(d_x, rows),)
)
_scatter.defvjp(
    lambda x, rows: (_scatter(x, rows), None), lambda rows, _, d_x: (_gather(d_x, rows),)
)
