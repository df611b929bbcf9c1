"""Where the chunks of a row begin, what stands at their places, and what tokens get back from them
(H-Net's downsampling and upsampling; Hwang et al., 2025, arXiv:2507.07955, section 2.2)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops.diagonal import diagonal_recurrence


class Chunking(NamedTuple):
    """The chunks of rows [batch, length]; a row's first chunks lie in `places` from the left."""

    begins: jax.Array  # [batch, length], bool: a chunk begins at this token
    begun: jax.Array  # [batch, length], int32: how many have begun, up to and with this token
    position: jax.Array  # [batch, length], the newest chunk's place in its document; −1 for none
    tokens: jax.Array  # [batch, places], the token at which a chunk begins; any for unused places
    used: jax.Array  # [batch, places], bool


def find_chunks(
    boundaries: jax.Array, starts: jax.Array, room: jax.Array, before: jax.Array, places: int
) -> Chunking:
    """A chunk begins at each of the first `room` boundaries of a row; the others are left out.

    Args:
        boundaries: [batch, length], bool.
        starts: [batch, length], bool, the first token of each document.
        room: [batch], how many chunks may begin, at most `places`.
        before: [batch], the chunks that the document of the row's first token has already.
        places: the most chunks of a row.
    """
    begins = boundaries & (jnp.cumsum(boundaries, axis=1) <= room[:, None])
    begun = jnp.cumsum(begins, axis=1, dtype=jnp.int32)
    # The chunks of the row before the token's document; less than none if it has some already.
    earlier = jax.lax.cummax(jnp.where(starts, begun - begins, -before[:, None]), axis=1)
    tokens = jnp.argsort(~begins, axis=1)[:, :places]  # stable: those that begin a chunk, in order
    used = jnp.arange(places) < begun[:, -1:]
    return Chunking(begins, begun, begun - earlier - 1, tokens, used)


def at_chunks(x: jax.Array, chunking: Chunking) -> jax.Array:
    """x [batch, length, ...] at the tokens that begin chunks: [batch, places, ...]."""
    places = jnp.expand_dims(chunking.tokens, range(2, x.ndim))
    return jnp.take_along_axis(x, places, axis=1)


def smoothed(z: jax.Array, p: jax.Array, state: jax.Array) -> jax.Array:
    """z̄_j = p_j z_j + (1 − p_j) z̄_{j−1}: z [batch, places, d], p [batch, places], and z̄ before the
    first chunk [batch, d]. The first chunk of a document has p = 1, so nothing passes its start."""
    p = p[..., None]
    one = jnp.ones(p.shape[:2], jnp.int32)
    return diagonal_recurrence(jnp.broadcast_to(1 - p, z.shape), p * z, one, state, one[:, 0])


def at_tokens(z: jax.Array, state: jax.Array, chunking: Chunking) -> tuple[jax.Array, jax.Array]:
    """The newest chunk's z [batch, places, d] at every token, [batch, length, d], and the newest of
    all [batch, d]. Before the first chunk of a row it is `state` [batch, d]; a document without a
    chunk has zeros."""
    every = jnp.concatenate([state[:, None], z], axis=1)
    newest = jnp.take_along_axis(every, chunking.begun[..., None], axis=1)
    return jnp.where(chunking.position[..., None] >= 0, newest, 0), newest[:, -1]
