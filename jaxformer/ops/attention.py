"""Softmax attention over keys that a query may see.

Letters: b batch, q queries, s keys, k key-value heads, g query heads of each, d head_dim.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Order(NamedTuple):
    """Which tokens of its document a token sees, where these are not the ones before it in the row:
    keys of its own rank or a lower one, but private keys only from their own rank."""

    rank: jax.Array  # [batch, length], int32
    private: jax.Array  # [batch, length], bool


class Tokens(NamedTuple):
    """Places and documents of tokens, each [batch, length], or [1, length] for all."""

    order: jax.Array  # the place in the row, which is the rank of a token without a given one
    positions: jax.Array  # in the document
    segment_ids: jax.Array  # which document; 0 is padding, −1 an empty slot of a cache
    given: Order | None = None

    @property
    def rank(self) -> jax.Array:
        return self.order if self.given is None else self.given.rank


class Visibility(NamedTuple):
    """What limits a query's view besides causality and documents.

    `window` counts the keys seen, the query's own among them; the first `sinks` tokens of a
    document are seen from everywhere in it (Xiao et al., 2023, arXiv:2309.17453).
    """

    window: int | None = None
    sinks: int = 0

    def mask(self, queries: Tokens, keys: Tokens) -> jax.Array:
        """[batch or 1, q, s], True where the query sees the key."""
        distance = queries.order[:, :, None] - keys.order[:, None, :]
        behind = queries.rank[:, :, None] - keys.rank[:, None, :]
        near = behind >= 0
        if keys.given is not None:
            near &= ~keys.given.private[:, None, :] | (behind == 0)
        if self.window is not None:
            within = distance < self.window
            if self.sinks:
                within |= keys.positions[:, None, :] < self.sinks
            near &= within
        return near & (queries.segment_ids[:, :, None] == keys.segment_ids[:, None, :])


def appended(old: jax.Array, new: jax.Array, lengths: jax.Array) -> jax.Array:
    """A cache's array [batch, slots, ...] with new [batch, n, ...] at slots lengths [batch] on."""

    def of_row(old: jax.Array, new: jax.Array, length: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), length, axis=0)

    return jax.vmap(of_row)(old, new, lengths)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    queries: Tokens,
    keys: Tokens,
    *,
    sink_logit: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """softmax(cap(scale · q·k) − slope · distance) v, over the keys that are visible.

    Args:
        v: [batch, s, kv_heads, head_dim].
        sink_logit: [heads], of one more key per head, which every query sees and whose value is 0.
        q, k, queries, keys, options: see `masked_logits`.

    Returns:
        [batch, q, heads, head_dim]. Logits and softmax are float32 at least.
    """
    logits = masked_logits(q, k, queries, keys, **options)
    if sink_logit is None:
        weights = jax.nn.softmax(logits, axis=-1)
    else:
        sink = sink_logit.astype(logits.dtype).reshape(*logits.shape[1:3], 1, 1)
        log_sum = jnp.logaddexp(jax.nn.logsumexp(logits, axis=-1, keepdims=True), sink)
        weights = jnp.exp(logits - log_sum)
    mixed = jnp.einsum("bkgqs,bskd->bqkgd", weights.astype(v.dtype), v)
    return mixed.reshape(*q.shape[:3], -1)


def masked_logits(
    q: jax.Array,
    k: jax.Array,
    queries: Tokens,
    keys: Tokens,
    *,
    visibility: Visibility,
    scale: float,
    logit_softcap: float | None = None,
    slopes: np.ndarray | None = None,
) -> jax.Array:
    """What `attend` takes the softmax of.

    Args:
        q: [batch, q, heads, head_dim]; query head h reads key-value head h // (heads / kv_heads).
        k: [batch, s, kv_heads, head_dim].
        queries, keys: their order, positions and documents.
        logit_softcap: cap(x) = c · tanh(x / c) (Gemma 2, arXiv:2408.00118).
        slopes: [heads], ALiBi's, per token of distance in the document.

    Returns:
        [batch, kv_heads, heads of each, q, s], the lowest number where a query does not see a key.
    """
    batch, length, _, head_dim = q.shape
    grouped = (q * scale).reshape(batch, length, k.shape[2], -1, head_dim)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bqkgd,bskd->bkgqs", grouped, k, preferred_element_type=wide)
    if logit_softcap is not None:
        logits = logit_softcap * jnp.tanh(logits / logit_softcap)
    if slopes is not None:
        distance = jnp.abs(queries.positions[:, :, None] - keys.positions[:, None, :]).astype(wide)
        per_head = jnp.asarray(slopes, wide).reshape(1, k.shape[2], -1, 1, 1)
        logits -= per_head * distance[:, None, None]
    visible = visibility.mask(queries, keys)[:, None, None]
    return jnp.where(visible, logits, jnp.finfo(wide).min)
