"""The diagonal recurrence h_t = a_t ⊙ h_{t−1} + b_t, per channel."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def diagonal_recurrence(
    a: jax.Array,
    b: jax.Array,
    segment_ids: jax.Array,
    state: jax.Array,
    last_segment: jax.Array,
    *,
    chunk: int = 256,
) -> jax.Array:
    """h_t = a_t ⊙ h_{t−1} + b_t for all t, starting anew at each document.

    Args:
        a, b: [batch, length, ...]; all trailing axes are channels.
        segment_ids: [batch, length]; the state is dropped where they change.
        state: [batch, ...], h before the first token.
        last_segment: [batch], the document that `state` belongs to.
        chunk: tokens that one associative scan takes.

    Returns:
        h of every token, as b. The gradient keeps one state a chunk beside a and b.
    """

    def advance(carried: tuple, tokens: tuple) -> tuple[tuple, jax.Array]:
        h = associative_recurrence(*tokens, *carried)
        return (h[:, -1], tokens[2][:, -1]), h

    return in_chunks(advance, (state, last_segment), (a, b, segment_ids), chunk)[1]


def associative_recurrence(
    a: jax.Array, b: jax.Array, segment_ids: jax.Array, state: jax.Array, last_segment: jax.Array
) -> jax.Array:
    """`diagonal_recurrence` in one associative scan, which holds several times a and b."""
    before = jnp.concatenate([last_segment[:, None], segment_ids[:, :-1]], axis=1)
    same = jnp.expand_dims(segment_ids == before, range(2, a.ndim))
    a = jnp.where(same, a, 0.0)
    b = b.at[:, 0].add(a[:, 0] * state)

    def combine(
        left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        (a_left, b_left), (a_right, b_right) = left, right
        return a_left * a_right, a_right * b_left + b_right

    return jax.lax.associative_scan(combine, (a, b), axis=1)[1]


def in_chunks(
    advance: Callable[[Any, Any], tuple[Any, jax.Array]], state: Any, inputs: Any, chunk: int
) -> tuple[Any, jax.Array]:
    """Scan `advance(state, inputs of a chunk) → (state, outputs)` over the length.

    The gradient computes every chunk again and keeps nothing but the states between them.

    Args:
        state: a pytree.
        inputs: a pytree of [batch, length, ...]; a last, shorter chunk takes what remains.
        chunk: tokens of a chunk.

    Returns:
        (the state after the last token, outputs [batch, length, ...]).
    """
    length = jax.tree.leaves(inputs)[0].shape[1]
    advance = jax.checkpoint(advance, prevent_cse=False)
    whole = length - length % chunk
    outputs = []
    if whole:
        parts = jax.tree.map(
            lambda x: jnp.moveaxis(x[:, :whole].reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0),
            inputs,
        )
        state, chunks = jax.lax.scan(advance, state, parts)
        chunks = jnp.moveaxis(chunks, 0, 1)
        outputs.append(chunks.reshape(chunks.shape[0], whole, *chunks.shape[3:]))
    if whole < length:
        state, rest = advance(state, jax.tree.map(lambda x: x[:, whole:], inputs))
        outputs.append(rest)
    return state, jnp.concatenate(outputs, axis=1) if len(outputs) > 1 else outputs[0]
