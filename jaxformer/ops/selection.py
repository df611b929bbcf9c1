"""Tokens picked out of rows, and what is made of them put back.

Inside `jax.shard_map` over the axis `context`, arrays [batch, length, ...] are one device's piece
of longer rows, and the picked tokens are dealt out anew, in equal pieces in the order of the row:
the devices share the work whatever tokens are picked, and the result is that of one device.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops import shards
from jaxformer.ops.shards import AXIS

PyTree = Any


def room(share: float, length: int) -> int:
    """⌈share · length⌉, where a product that is whole but for its rounding is not rounded up; at
    least 1."""
    return max(1, math.ceil(round(share * length, 6)))


def best_of(scores: jax.Array, candidates: jax.Array, share: float) -> jax.Array:
    """The ⌈share · length⌉ candidates of each row with the highest scores, or all of them if there
    are fewer: booleans [batch, length], like `candidates`; of equal scores, the first."""

    best = partial(best_of_whole, share=share)
    return shards.of_whole(best, jax.lax.stop_gradient(scores), candidates)


def best_of_whole(scores: jax.Array, candidates: jax.Array, share: float) -> jax.Array:
    """`best_of` of rows that are not cut."""
    ranked = jnp.where(candidates, scores, -jnp.inf)
    _, best = jax.lax.top_k(ranked, room(share, scores.shape[1]))
    mark = jax.vmap(lambda row, places: row.at[places].set(True, unique_indices=True))
    return mark(jnp.zeros_like(candidates), best) & candidates


class Selection(NamedTuple):
    """The slots of picked tokens: in the order of the row, empty ones last."""

    picked: jax.Array  # [batch, length], bool
    slots: jax.Array  # [batch, length], int32: the slot of a token, if it is picked
    filled: jax.Array  # [batch, slots], bool: whether a slot has a token of this device
    places: jax.Array  # [batch, slots], int32: where that token is


def select(picked: jax.Array, share: float) -> Selection:
    """The selection of `picked` [batch, length], at most ⌈share · length⌉ tokens of a whole row.

    Rows that are cut over devices have a few more slots, so that every device gets as many.
    """
    parts, here = shards.count(), picked.shape[1]
    length = parts * here
    whole, start, count = picked, jnp.int32(0), room(share, length)
    if parts > 1:
        whole = jax.lax.all_gather(picked, AXIS, axis=1, tiled=True)
        start = jax.lax.axis_index(AXIS) * here
        count = -(-count // (2 * parts)) * 2 * parts  # attention deals out half pieces
    slots = jnp.cumsum(whole, axis=1, dtype=jnp.int32) - 1
    slots = jnp.clip(jax.lax.dynamic_slice_in_dim(slots, start, here, axis=1), 0)
    in_row = jnp.arange(length, dtype=jnp.int32)
    places = jnp.sort(jnp.where(whole, in_row, length), axis=1)[:, :count]
    filled = (places < length) & (places >= start) & (places < start + here)
    return Selection(picked, slots, filled, jnp.clip(places - start, 0, here - 1))


def take(selection: Selection, tree: PyTree) -> PyTree:
    """Arrays [batch, length, ...] → [batch, slots / devices, ...], zero in empty slots."""

    def of_array(x: jax.Array) -> jax.Array:
        kind, x = x.dtype, x.astype(jnp.int32) if x.dtype == bool else x
        move = _moved if jnp.issubdtype(x.dtype, jnp.inexact) else _at
        y = move(x, selection.places, selection.filled, selection.slots, selection.picked)
        if shards.count() > 1:
            y = jax.lax.psum_scatter(y, AXIS, scatter_dimension=1, tiled=True)
        return y.astype(kind)

    return jax.tree.map(of_array, tree)


def put(selection: Selection, tree: PyTree) -> PyTree:
    """Arrays [batch, slots / devices, ...] → [batch, length, ...], zero where none is picked."""

    def of_array(y: jax.Array) -> jax.Array:
        if shards.count() > 1:
            y = jax.lax.all_gather(y, AXIS, axis=1, tiled=True)
        return _moved(y, selection.slots, selection.picked, selection.places, selection.filled)

    return jax.tree.map(of_array, tree)


def _at(x: jax.Array, places: jax.Array, valid: jax.Array, *inverse: jax.Array) -> jax.Array:
    """x [batch, n, ...] at places [batch, m], and zero where they are not valid."""
    along = (..., *[None] * (x.ndim - 2))
    y = jnp.take_along_axis(x, places[along], axis=1, mode="promise_in_bounds")
    return jnp.where(valid[along], y, jnp.zeros((), x.dtype))


# The transpose of a gather is a scatter, which is slow. Here it is the gather the other way.
@jax.custom_vjp
def _moved(
    x: jax.Array, places: jax.Array, valid: jax.Array, back: jax.Array, back_valid: jax.Array
) -> jax.Array:
    return _at(x, places, valid)


def _moved_forward(x: jax.Array, *indices: jax.Array) -> tuple[jax.Array, tuple]:
    return _moved(x, *indices), indices


def _moved_backward(indices: tuple, d_y: jax.Array) -> tuple:
    places, valid, back, back_valid = indices
    return _moved(d_y, back, back_valid, places, valid), None, None, None, None


_moved.defvjp(_moved_forward, _moved_backward)
