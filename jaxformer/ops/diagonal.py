"""The diagonal recurrence h_t = a_t ⊙ h_{t−1} + b_t, per channel."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops import shards


class Carried(NamedTuple):
    """What is carried from chunk to chunk."""

    h: jax.Array  # [batch, ...]
    segment: jax.Array  # [batch], the document it belongs to


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
        h of every token, shaped like b. The gradient keeps one state per chunk besides a and b.
    """

    def advance(carried: Carried, tokens: tuple) -> tuple[Carried, jax.Array]:
        a, b, segments = tokens
        h = associative_recurrence(a, b, segments, *carried)
        return Carried(h[:, -1], segments[:, -1]), h

    return in_chunks(advance, Carried(state, last_segment), (a, b, segment_ids), chunk)[1]


def associative_recurrence(
    a: jax.Array, b: jax.Array, segment_ids: jax.Array, state: jax.Array, last_segment: jax.Array
) -> jax.Array:
    """`diagonal_recurrence` in one associative scan, which needs several times their memory."""
    before = jnp.concatenate([last_segment[:, None], segment_ids[:, :-1]], axis=1)
    same = jnp.expand_dims(segment_ids == before, range(2, a.ndim))
    a = jnp.where(same, a, 0.0)
    return _recurrence(a, b.at[:, 0].add(a[:, 0] * state))


@jax.custom_vjp
def _recurrence(a: jax.Array, b: jax.Array) -> jax.Array:
    """h_t = a_t ⊙ h_{t−1} + b_t from h_{−1} = 0. Its gradient is the same recurrence backwards, one
    more scan; that of `associative_scan` itself takes the memory and time of three."""
    return _scan(a, b)


def _scan(a: jax.Array, b: jax.Array, *, reverse: bool = False) -> jax.Array:
    def combine(
        left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        (a_left, b_left), (a_right, b_right) = left, right
        return a_left * a_right, a_right * b_left + b_right

    return jax.lax.associative_scan(combine, (a, b), axis=1, reverse=reverse)[1]


def _recurrence_forward(
    a: jax.Array, b: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    h = _scan(a, b)
    return h, (a, h)


def _recurrence_backward(
    kept: tuple[jax.Array, jax.Array], d_h: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """g_t = a_{t+1} ⊙ g_{t+1} + dh_t,  db = g,  da_t = g_t ⊙ h_{t−1}."""
    a, h = kept
    g = _scan(jnp.roll(a, -1, axis=1), d_h, reverse=True)  # nothing follows the last
    before = jnp.concatenate([jnp.zeros_like(h[:, :1]), h[:, :-1]], axis=1)
    return g * before, g


_recurrence.defvjp(_recurrence_forward, _recurrence_backward)


def in_chunks(
    advance: Callable[[Carried, tuple], tuple[Carried, jax.Array]],
    state: Carried,
    inputs: tuple,
    chunk: int,
) -> tuple[Carried, jax.Array]:
    """Scan `advance(state, inputs of a chunk) → (state, outputs)` over the length.

    `advance` is linear in h, channel by channel. The gradient recomputes every chunk and keeps only
    the states between them.

    Args:
        inputs: arrays [batch, length, ...], segment ids last; a last, shorter chunk takes what
            remains.
        chunk: tokens of a chunk.

    Returns:
        (the state after the last token, outputs [batch, length, ...]).
    """
    if shards.count() > 1:
        segment = shards.from_before(inputs[-1][:, -1], state.segment)

        def last(h: jax.Array) -> jax.Array:
            return _in_chunks(advance, Carried(h, segment), inputs, chunk)[0].h

        # A shard maps h to decay · h + entered: what zero becomes, with decay as the gradient.
        entered, pull = jax.vjp(last, jnp.zeros_like(state.h))
        (decay,) = pull(jnp.ones_like(state.h))
        h = shards.state_before(state.h, lambda h, shard: shard[0] * h + shard[1], (decay, entered))
        state = Carried(h, segment)
    return _in_chunks(advance, state, inputs, chunk)


def _in_chunks(
    advance: Callable[[Carried, tuple], tuple[Carried, jax.Array]],
    state: Carried,
    inputs: tuple,
    chunk: int,
) -> tuple[Carried, jax.Array]:
    length = inputs[-1].shape[1]
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
