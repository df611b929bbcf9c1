"""Softmax attention over keys that a query may see.

Letters: b batch, q queries, s keys, k key-value heads, g query heads of each, d head_dim.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Queries are taken in blocks, and a block meets only the keys before its end, so that nearly half
# of the products are never made. More blocks would skip little more and compile longer.
SMALLEST_BLOCK = 64
MOST_BLOCKS = 16


class Tokens(NamedTuple):
    """Where tokens stand. Each is [batch, length], or [1, length] where all rows agree."""

    order: jax.Array  # in the row: a query sees no key of a higher one
    positions: jax.Array  # in the document
    segment_ids: jax.Array  # which document; 0 is padding, −1 an empty slot of a cache


class Visibility(NamedTuple):
    """What else than causality and documents limits a query's view.

    `window` counts the keys seen, the query's own among them; the first `sinks` tokens of a
    document are seen from everywhere in it (Xiao et al., 2023, arXiv:2309.17453).
    """

    window: int | None = None
    sinks: int = 0

    def mask(self, queries: Tokens, keys: Tokens) -> jax.Array:
        """[batch or 1, q, s], True where the query sees the key."""
        distance = queries.order[:, :, None] - keys.order[:, None, :]
        near = distance >= 0
        if self.window is not None:
            within = distance < self.window
            if self.sinks:
                within |= keys.positions[:, None, :] < self.sinks
            near &= within
        return near & (queries.segment_ids[:, :, None] == keys.segment_ids[:, None, :])


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    queries: Tokens,
    keys: Tokens,
    *,
    visibility: Visibility,
    scale: float,
    logit_softcap: float | None = None,
    slopes: np.ndarray | None = None,
) -> jax.Array:
    """softmax(cap(scale · q·k) − slope · distance) v, over the keys that are visible.

    Args:
        q: [batch, q, heads, head_dim]; query head h reads key-value head h // (heads / kv_heads).
        k, v: [batch, s, kv_heads, head_dim].
        queries, keys: where both stand.
        logit_softcap: cap(x) = c · tanh(x / c) (Gemma 2, arXiv:2408.00118).
        slopes: [heads], ALiBi's, per token of distance.

    Returns:
        [batch, q, heads, head_dim]. Logits and softmax are float32 at least.
    """
    batch, length, heads, head_dim = q.shape
    grouped = (q * scale).reshape(batch, length, k.shape[2], -1, head_dim)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bqkgd,bskd->bkgqs", grouped, k, preferred_element_type=wide)
    if logit_softcap is not None:
        logits = logit_softcap * jnp.tanh(logits / logit_softcap)
    if slopes is not None:
        distance = (queries.order[:, :, None] - keys.order[:, None, :]).astype(wide)
        per_head = jnp.asarray(slopes, wide).reshape(1, k.shape[2], -1, 1, 1)
        logits -= per_head * distance[:, None, None]
    visible = visibility.mask(queries, keys)[:, None, None]
    weights = jax.nn.softmax(jnp.where(visible, logits, jnp.finfo(wide).min), axis=-1)
    mixed = jnp.einsum("bkgqs,bskd->bqkgd", weights.astype(v.dtype), v)
    return mixed.reshape(batch, length, heads, -1)


def causal_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    tokens: Tokens,
    *,
    visibility: Visibility,
    **options: Any,
) -> jax.Array:
    """`attend` of a whole row to itself, in blocks of queries that skip the keys no query sees."""
    length = q.shape[1]
    block = max(SMALLEST_BLOCK, -(-length // MOST_BLOCKS))
    stops = [*range(block, length, block), length]
    starts = [0, *stops[:-1]]
    # The gradient of a split is one concatenation, that of slices a sum of padded arrays.
    blocks = jax.lax.split(q, np.subtract(stops, starts).tolist(), axis=1)
    outputs = []
    for start, stop, q_block in zip(starts, stops, blocks, strict=True):
        first = max(0, start - (visibility.window or length) + 1)
        keys, values, places = k[:, first:stop], v[:, first:stop], _between(tokens, first, stop)
        if first and visibility.sinks:
            sinks, where = _earlier_sinks(tokens, first, visibility.sinks)
            keys = jnp.concatenate([_take(k, where), keys], axis=1)
            values = jnp.concatenate([_take(v, where), values], axis=1)
            places = Tokens(*(_join(pair) for pair in zip(sinks, places, strict=True)))
        queries = _between(tokens, start, stop)
        outputs.append(
            attend(q_block, keys, values, queries, places, visibility=visibility, **options)
        )
    return jnp.concatenate(outputs, axis=1) if len(outputs) > 1 else outputs[0]


def _between(tokens: Tokens, start: int, stop: int) -> Tokens:
    return Tokens(*(part[:, start:stop] for part in tokens))


def _take(array: jax.Array, where: jax.Array) -> jax.Array:
    """array [batch, length, ...] at `where` [batch, n] → [batch, n, ...]."""
    return jax.vmap(lambda row, indices: row[indices])(array, where)


def _join(parts: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Concatenates along the length, after spreading [1, length] over the batch."""
    batch = max(part.shape[0] for part in parts)
    spread = [jnp.broadcast_to(part, (batch, part.shape[1])) for part in parts]
    return jnp.concatenate(spread, axis=1)


def _earlier_sinks(tokens: Tokens, first: int, count: int) -> tuple[Tokens, jax.Array]:
    """The sinks that lie before token `first`, of the document that goes on there, and their
    indices [batch, count]. Only that document can have both sinks before and queries after."""
    wanted = first - tokens.positions[:, first, None] + jnp.arange(count)
    before = (wanted >= 0) & (wanted < first)
    where = jnp.where(before, wanted, 0)
    segments = jnp.where(before, _take(tokens.segment_ids, where), -1)
    return Tokens(where, _take(tokens.positions, where), segments), where
