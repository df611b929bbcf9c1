"""Stick-breaking attention (Tan et al., 2024, arXiv:2410.17980): from the nearest key to the first,
each takes a share β of what the keys after it have left.

A_ij = β_ij Π_{j<l<i} (1 − β_il), with β_ij = σ(scale · q_i · k_j), over the keys j before query i
in its document. Letters are those of ops/attention.py.
"""

import jax
import jax.numpy as jnp

from jaxformer.ops import shards
from jaxformer.ops.attention import Tokens, Visibility, masked_logits
from jaxformer.ops.row_attention import in_blocks


def stick_breaking(
    q: jax.Array, k: jax.Array, v: jax.Array, queries: Tokens, keys: Tokens, *, scale: float
) -> tuple[jax.Array, jax.Array]:
    """Σ_j A_ij v_j, and what is left of the stick, 1 − Σ_j A_ij = Π_j (1 − β_ij).

    Args:
        q: [batch, q, heads, head_dim]; query head h reads key-value head h // (heads / kv_heads).
        k, v: [batch, s, kv_heads, head_dim], in the order of their row.
        queries, keys: their order and documents.

    Returns:
        [batch, q, heads, head_dim], and [batch, q, heads]. Logits, and sums of logs in place of the
        products, are float32 at least.
    """
    logits = masked_logits(q, k, queries, keys, visibility=Visibility(), scale=scale)
    lowest = jnp.finfo(logits.dtype).min  # here log β is as low, and log(1 − β) is 0
    is_own = queries.order[:, :, None] == keys.order[:, None, :]
    logits = jnp.where(is_own[:, None, None], lowest, logits)
    # log Π (1 − β) over each key and those between it and the query; then without the key's own.
    log_left = jax.lax.cumsum(jax.nn.log_sigmoid(-logits), axis=4, reverse=True)
    log_before = jnp.pad(log_left[..., 1:], [(0, 0)] * 4 + [(0, 1)])
    weights = jnp.exp(jax.nn.log_sigmoid(logits) + log_before)
    mixed = jnp.einsum("bkgqs,bskd->bqkgd", weights.astype(v.dtype), v)
    left = jnp.moveaxis(jnp.exp(log_left[..., 0]), 3, 1)  # [batch, q, kv_heads, heads of each]
    return mixed.reshape(*q.shape[:3], -1), left.reshape(q.shape[:3])


def row_stick_breaking(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, *, scale: float
) -> tuple[jax.Array, jax.Array]:
    """`stick_breaking` of whole rows to themselves, in blocks of queries that skip the keys behind
    them: no more than a block's logits are held, but compute is quadratic.

    Where rows are split over devices, each device gathers all keys and values, and its queries meet
    all of them.
    """
    length, is_cut = q.shape[1], shards.count() > 1
    k, v, documents = (shards.whole(x) for x in (k, v, segment_ids))
    before = jax.lax.axis_index(shards.AXIS) * length if is_cut else 0
    places = jnp.arange(k.shape[1], dtype=jnp.int32)[None]
    outputs = []
    for start, stop, q_block in in_blocks(q):
        last = k.shape[1] if is_cut else stop
        own = before + jnp.arange(start, stop, dtype=jnp.int32)[None]
        queries = Tokens(own, own, segment_ids[:, start:stop])
        keys = Tokens(places[:, :last], places[:, :last], documents[:, :last])
        outputs.append(
            stick_breaking(q_block, k[:, :last], v[:, :last], queries, keys, scale=scale)
        )
    mixed, left = (jnp.concatenate(parts, axis=1) for parts in zip(*outputs, strict=True))
    return mixed, left
