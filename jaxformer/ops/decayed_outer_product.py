"""The recurrence of linear attention with decay: S_t = Diag(a_t) S_{t−1} + k_t v_tᵀ.

Katharopoulos et al., 2020, arXiv:2006.16236; with decay in chunks: Sun et al., 2023,
arXiv:2307.08621; Yang et al., 2023, arXiv:2312.06635; Dao and Gu, 2024, arXiv:2405.21060.
"""

import jax
import jax.numpy as jnp

from jaxformer.ops.decay import (
    Chunks,
    State,
    by_chunk,
    by_token,
    carry,
    decayed_products,
    drop_other_documents,
    exclusive,
    for_heads,
    running_total,
)


def decayed_outer_product(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    segment_ids: jax.Array,
    state: State,
    *,
    chunk: int = 64,
) -> tuple[jax.Array, State]:
    """S_t = Diag(a_t) S_{t−1} + k_t v_tᵀ,  o_t = S_tᵀ q_t, in chunks of matrix products.

    Args:
        q, k: [batch, length, heads, K], or with one decay per head [batch, length, groups, K]: the
            heads of a group share them.
        v: [batch, length, heads, V].
        log_decay: log a_t ≤ 0, [batch, length, heads, K], or 1 instead of K.
        segment_ids: [batch, length]; the memory is dropped where they change.
        state: what came before.
        chunk: tokens that meet in one product.

    Returns:
        (o [batch, length, heads, V] in v's type, the state after the last token). Sums and memory
        are float32 at least; the gradient keeps one memory per chunk.
    """
    if q.shape[1] == 1:
        return decayed_step(q, k, v, log_decay, segment_ids, state)
    return _in_chunks(q, k, v, log_decay, segment_ids, state, chunk, strict=False)


def past_outer_product(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    segment_ids: jax.Array,
    state: State,
    *,
    chunk: int = 64,
) -> tuple[jax.Array, State]:
    """S_t as in `decayed_outer_product`, read before the token's own decay and write:
    o_t = S_{t−1}ᵀ q_t, zero for the first token of a document (RWKV-6, arXiv:2404.05892).

    Args and returns: as for `decayed_outer_product`.
    """
    if q.shape[1] == 1:
        return _past_step(q, k, v, log_decay, segment_ids, state)
    return _in_chunks(q, k, v, log_decay, segment_ids, state, chunk, strict=True)


def _in_chunks(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    segment_ids: jax.Array,
    state: State,
    chunk: int,
    *,
    strict: bool,
) -> tuple[jax.Array, State]:
    """Queries read the memory after their token, or before it if strict."""
    length, wide = q.shape[1], state.memory.dtype
    size = min(chunk, length)
    chunks = Chunks.of(segment_ids, size, state.segment)
    qs, ks, vs, logs = (by_chunk(x.astype(wide), size) for x in (q, k, v, log_decay))
    log_total = running_total(logs)  # [batch, heads, chunks, size, K or 1]
    log_read = exclusive(log_total) if strict else log_total

    scores = decayed_products(qs, ks, log_read, log_total, strict=strict)
    inside = jnp.where(chunks.causal(strict=strict), scores, 0.0) @ vs
    qs, ks = (for_heads(x, v.shape[2]) for x in (qs, ks))
    written = chunks.writes(ks, log_total).swapaxes(-1, -2) @ vs
    before, memory = carry(state.memory, chunks.decay(log_total), written)
    outside = chunks.reads(qs, log_read) @ before
    return by_token(inside + outside, length).astype(v.dtype), State(memory, segment_ids[:, -1])


def decayed_step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    segment_ids: jax.Array,
    state: State,
) -> tuple[jax.Array, State]:
    """`decayed_outer_product` of one token, length 1."""
    wide, segment = state.memory.dtype, segment_ids[:, 0]
    query, key, value, log = (x[:, 0].astype(wide) for x in (q, k, v, log_decay))
    query, key = (for_heads(x, v.shape[2]) for x in (query, key))
    memory = jnp.exp(log)[..., None] * drop_other_documents(state, segment)
    memory += key[..., :, None] * value[..., None, :]
    o = jnp.einsum("bhkv,bhk->bhv", memory, query)
    return o[:, None].astype(v.dtype), State(memory, segment)


def _past_step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    segment_ids: jax.Array,
    state: State,
) -> tuple[jax.Array, State]:
    """`past_outer_product` of one token, length 1."""
    before = drop_other_documents(state, segment_ids[:, 0])
    query = for_heads(q[:, 0].astype(before.dtype), v.shape[2])
    o = jnp.einsum("bhkv,bhk->bhv", before, query)
    _, after = decayed_step(q, k, v, log_decay, segment_ids, state)
    return o[:, None].astype(v.dtype), after
