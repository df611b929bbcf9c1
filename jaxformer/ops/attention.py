"""Softmax attention over keys that a query may see.

Letters: b batch, q queries, s keys, k key-value heads, g query heads of each, d head_dim.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.ops.relative_bias import biases


class Order(NamedTuple):
    """Which tokens of its document a token sees, where `Visibility` alone does not say it: keys of
    its own rank or a lower one, but private keys only from their own rank."""

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
    """Which keys of its document a query sees: if `is_causal` itself and those before it, else all.

    `window` counts the keys seen on each side, the query's own among them; the first `sinks` tokens
    of a document are seen beyond it (Xiao et al., 2023, arXiv:2309.17453). Where each row is one
    document, `is_whole`, documents need no mask.
    """

    window: int | None = None
    sinks: int = 0
    is_causal: bool = True
    is_whole: bool = False

    @property
    def hides_nothing(self) -> bool:
        return self.is_whole and not self.is_causal and self.window is None

    def mask(self, queries: Tokens, keys: Tokens) -> jax.Array:
        """[batch or 1, q, s], True where the query sees the key."""
        visible = queries.segment_ids[:, :, None] == keys.segment_ids[:, None, :]
        if self.is_causal or keys.given is not None:
            behind = queries.rank[:, :, None] - keys.rank[:, None, :]
            visible &= behind >= 0
            if keys.given is not None:
                visible &= ~keys.given.private[:, None, :] | (behind == 0)
        if self.window is not None:
            distance = queries.order[:, :, None] - keys.order[:, None, :]
            within = jnp.abs(distance) < self.window
            if self.sinks:
                within |= keys.positions[:, None, :] < self.sinks
            visible &= within
        return visible

    def keys(self, length: int) -> float:
        """How many keys a query sees, on average over a document of `length` tokens."""
        window = min(self.window or length, length)
        if self.is_causal:
            # The first `seen` queries see 1, 2, … keys, the others `seen` each.
            seen = min(length, window + self.sinks)
            return seen * (length - (seen - 1) / 2) / length
        near = length * (2 * window - 1) - window * (window - 1)  # without what lies past the ends
        sinks = range(min(self.sinks, length))
        far = sum(max(0, length - sink - window) + max(0, sink - window + 1) for sink in sinks)
        return (near + far) / length


class LogForget(NamedTuple):
    """c_i = Σ_{l ≤ i} log f_l, the sums over a row of what every head keeps at each token: a gate f
    in [0, 1] (FoX: Lin et al., 2025, arXiv:2503.02130). From key j to query i, e^{c_i − c_j} is
    kept. Where the sums begin does not matter."""

    queries: jax.Array  # [batch, q, heads]
    keys: jax.Array  # [batch, s, heads]

    @classmethod
    def of(cls, queries: jax.Array | None, keys: jax.Array | None) -> "LogForget | None":
        """Both, or None where there are no gates."""
        return None if queries is None or keys is None else cls(queries, keys)


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
    """softmax(cap(scale · q·k) − slope · distance + bias + c_i − c_j) v, over the keys that are
    visible.

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
    relative_bias: jax.Array | None = None,
    max_distance: int | None = None,
    log_forget: LogForget | None = None,
) -> jax.Array:
    """What `attend` takes the softmax of.

    Args:
        q: [batch, q, heads, head_dim]; query head h reads key-value head h // (heads / kv_heads).
        k: [batch, s, kv_heads, head_dim].
        queries, keys: their order, positions and documents.
        logit_softcap: cap(x) = c · tanh(x / c) (Gemma 2, arXiv:2408.00118).
        slopes: [heads], ALiBi's, per token of distance in the document.
        relative_bias, max_distance: T5's biases [batch, heads, buckets], and the distance in the
            document from which on they do not change; both or neither.
        log_forget: the c of queries and keys, in float32 at least: a long row's sums are large, and
            only their differences count.

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
    if relative_bias is not None:
        assert max_distance is not None
        table, places = relative_bias.astype(wide), (queries.positions, keys.positions)
        added = biases(table, *places, max_distance, visibility.is_causal)
        logits += added.reshape(logits.shape)
    if log_forget is not None:
        by_head = (x.reshape(*x.shape[:2], *logits.shape[1:3]) for x in log_forget)
        of_queries, of_keys = (jnp.moveaxis(x.astype(wide), 1, 3) for x in by_head)
        logits += of_queries[..., :, None] - of_keys[..., None, :]
    if visibility.hides_nothing and keys.given is None:
        return logits
    visible = visibility.mask(queries, keys)[:, None, None]
    return jnp.where(visible, logits, jnp.finfo(wide).min)
