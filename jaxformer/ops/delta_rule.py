"""Recurrences that erase before they write: the delta rule, and diagonal plus low rank.

DeltaNet in chunks: Yang et al., 2024, arXiv:2406.06484; with decay per head: arXiv:2412.06464,
per channel: arXiv:2510.26692; with another key to erase than to write: arXiv:2506.02475 and
arXiv:2605.22791; diagonal plus low rank: Peng et al., 2025, arXiv:2503.14456.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops import shards
from jaxformer.ops.decay import (
    Chunks,
    State,
    by_chunk,
    by_token,
    decayed_products,
    drop_other_documents,
    exclusive,
    memory_before,
    running_total,
)

# A triangular matrix of this size is inverted row by row.
SMALLEST_INVERSE = 8


def delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    log_decay: jax.Array,
    segment_ids: jax.Array,
    state: State,
    *,
    chunk: int = 64,
) -> tuple[jax.Array, State]:
    """S_t = (I − β_t k_t k_tᵀ) Diag(a_t) S_{t−1} + β_t k_t v_tᵀ,  o_t = S_tᵀ q_t.

    Args:
        q, k: [batch, length, heads, K]; it is stable for ‖k‖ = 1 and β in [0, 2].
        v: [batch, length, heads, V].
        beta: [batch, length, heads].
        log_decay: log a_t ≤ 0, [batch, length, heads, K], or 1 instead of K.
        segment_ids: [batch, length]; the memory is dropped where they change.
        state: what came before.
        chunk: tokens that meet in one product.

    In a chunk with total decays G_t, S_t = Diag(G_t) (S_0 + Σ_{s≤t} β_s k_s/G_s w_sᵀ), where
    the values w = v − Sᵀ(a ⊙ k) solve a triangular system (the WY representation):

        w_t + Σ_{s<t} k_tᵀ Diag(G_t/G_s) k_s β_s w_s = v_t − S_0ᵀ (G_t ⊙ k_t).

    Returns:
        (o [batch, length, heads, V] in v's type, the state after the last token).
    """
    if q.shape[1] == 1:
        write, read = beta[..., None] * k, -jnp.exp(log_decay) * k
        return _step(q, write, v, write, read, log_decay, segment_ids, state)
    length, wide = q.shape[1], state.memory.dtype
    size = min(chunk, length)
    chunks = Chunks.of(segment_ids, size, state.segment)
    qs, ks, vs, betas, logs = (
        by_chunk(x.astype(wide), size) for x in (q, k, v, beta[..., None], log_decay)
    )
    log_total = running_total(logs)
    writes = betas * ks

    erased = decayed_products(ks, writes, log_total, log_total)
    system = System(
        lower=jnp.where(chunks.causal(strict=True), erased, 0.0),
        right=vs,
        read=-chunks.reads(ks, log_total),
    )
    scores = decayed_products(qs, writes, log_total, log_total)
    scores = jnp.where(chunks.causal(strict=False), scores, 0.0)
    o, memory = _read_out(state, chunks, qs, log_total, system, writes, scores)
    return by_token(o, length).astype(v.dtype), State(memory, segment_ids[:, -1])


def two_key_delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    p: jax.Array,
    log_decay: jax.Array,
    segment_ids: jax.Array,
    state: State,
    *,
    chunk: int = 64,
) -> tuple[jax.Array, State]:
    """S_t = (Diag(a_t) − k_t p_tᵀ) S_{t−1} + k_t v_tᵀ,  o_t = S_tᵀ q_t.

    It erases what the memory answers to p_t and writes with k_t. The delta rule is the case
    p_t = a_t ⊙ k_t with β_t k_t for k_t.

    Args:
        q, k, p: [batch, length, heads, K].
        v: [batch, length, heads, V].
        log_decay, segment_ids, state, chunk: as in `delta_rule`.

    The values w_t = v_t − S_{t−1}ᵀ p_t of a chunk, one row per token, solve

        w_t + Σ_{s<t} p_tᵀ Diag(G_{t−1}/G_s) k_s w_s = v_t − S_0ᵀ (G_{t−1} ⊙ p_t).

    Returns:
        (o [batch, length, heads, V] in v's type, the state after the last token).
    """
    if q.shape[1] == 1:
        return _step(q, k, v, -k, p, log_decay, segment_ids, state)
    length, wide = q.shape[1], state.memory.dtype
    size = min(chunk, length)
    chunks = Chunks.of(segment_ids, size, state.segment)
    qs, ks, vs, ps, logs = (by_chunk(x.astype(wide), size) for x in (q, k, v, p, log_decay))
    log_total = running_total(logs)
    log_before = exclusive(log_total)

    erased = decayed_products(ps, ks, log_before, log_total, strict=True)
    system = System(
        lower=jnp.where(chunks.causal(strict=True), erased, 0.0),
        right=vs,
        read=-chunks.reads(ps, log_before),
    )
    scores = decayed_products(qs, ks, log_total, log_total)
    scores = jnp.where(chunks.causal(strict=False), scores, 0.0)
    o, memory = _read_out(state, chunks, qs, log_total, system, ks, scores)
    return by_token(o, length).astype(v.dtype), State(memory, segment_ids[:, -1])


def diagonal_plus_low_rank(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    u: jax.Array,
    p: jax.Array,
    log_decay: jax.Array,
    segment_ids: jax.Array,
    state: State,
    *,
    chunk: int = 64,
) -> tuple[jax.Array, State]:
    """S_t = (Diag(a_t) + u_t p_tᵀ) S_{t−1} + k_t v_tᵀ,  o_t = S_tᵀ q_t.

    Args:
        q, k, u, p: [batch, length, heads, K].
        v: [batch, length, heads, V].
        log_decay, segment_ids, state, chunk: as in `delta_rule`.

    With z_t = S_{t−1}ᵀ p_t it writes two rows per token, u_t z_tᵀ and k_t v_tᵀ; the z of a chunk
    solve a triangular system.

    Returns:
        (o [batch, length, heads, V] in v's type, the state after the last token).
    """
    if q.shape[1] == 1:
        return _step(q, k, v, u, p, log_decay, segment_ids, state)
    length, wide = q.shape[1], state.memory.dtype
    size = min(chunk, length)
    chunks = Chunks.of(segment_ids, size, state.segment)
    qs, ks, vs, us, ps, logs = (by_chunk(x.astype(wide), size) for x in (q, k, v, u, p, log_decay))
    log_total = running_total(logs)
    log_before = exclusive(log_total)

    strictly, upto = chunks.causal(strict=True), chunks.causal(strict=False)
    among = jnp.where(strictly, decayed_products(ps, us, log_before, log_total, strict=True), 0.0)
    seen = jnp.where(strictly, decayed_products(ps, ks, log_before, log_total, strict=True), 0.0)
    system = System(lower=-among, right=seen @ vs, read=chunks.reads(ps, log_before))
    by_system, plain = (
        jnp.where(upto, decayed_products(qs, writes, log_total, log_total), 0.0)
        for writes in (us, ks)
    )
    written = chunks.writes(ks, log_total).swapaxes(-1, -2) @ vs
    o, memory = _read_out(state, chunks, qs, log_total, system, us, by_system, written)
    return by_token(o + plain @ vs, length).astype(v.dtype), State(memory, segment_ids[:, -1])


class System(NamedTuple):
    """The rows that a chunk writes solve (I + lower) rows = right + read · memory before the chunk.

    All [batch, heads, chunks, size, ...].
    """

    lower: jax.Array  # [..., size], strictly lower triangular
    right: jax.Array  # [..., V]
    read: jax.Array  # [..., K]


@jax.custom_vjp
def _solve_unit(lower: jax.Array, inverse: jax.Array, right: jax.Array) -> jax.Array:
    """(I + lower)⁻¹ right, from the inverse; its gradient goes to `lower`."""
    return inverse @ right


def _solve_forward(
    lower: jax.Array, inverse: jax.Array, right: jax.Array
) -> tuple[jax.Array, tuple]:
    solution = inverse @ right
    return solution, (inverse, solution)


def _solve_backward(kept: tuple, gradient: jax.Array) -> tuple[jax.Array, None, jax.Array]:
    inverse, solution = kept
    right = inverse.swapaxes(-1, -2) @ gradient
    return -right @ solution.swapaxes(-1, -2), None, right


_solve_unit.defvjp(_solve_forward, _solve_backward)


def _inverse(lower: jax.Array) -> jax.Array:
    """(I + lower)⁻¹ for a strictly lower triangular matrix [..., chunks, size, size]."""
    size = lower.shape[-1]
    padding = [(0, 0)] * (lower.ndim - 2) + [(0, 2 ** math.ceil(math.log2(size)) - size)] * 2
    return _unit_inverse(jnp.pad(lower, padding))[..., :size, :size]


def _unit_inverse(lower: jax.Array) -> jax.Array:
    """(I + lower)⁻¹ by halves, for a size that is a power of two, small ones row by row:

    [[A, 0], [B, D]]⁻¹ = [[A⁻¹, 0], [−D⁻¹ B A⁻¹, D⁻¹]]

    These are matrix products, which are fast on every platform, unlike substitution by rows.
    """
    chunks, size, _ = lower.shape[-3:]
    if size <= SMALLEST_INVERSE:
        rows: list[jax.Array] = []
        for row, unit in enumerate(jnp.eye(size, dtype=lower.dtype)):
            known = (lower[..., row, before, None] * rows[before] for before in range(row))
            rows.append(jnp.broadcast_to(unit, (*lower.shape[:-2], size)) - sum(known))
        return jnp.stack(rows, axis=-2)
    half = size // 2
    first, second = lower[..., :half, :half], lower[..., half:, half:]
    diagonal = _unit_inverse(jnp.concatenate([first, second], axis=-3))
    first, second = diagonal[..., :chunks, :, :], diagonal[..., chunks:, :, :]
    below = -second @ (lower[..., half:, :half] @ first)
    return jnp.concatenate(
        [
            jnp.concatenate([first, jnp.zeros_like(below)], axis=-1),
            jnp.concatenate([below, second], axis=-1),
        ],
        axis=-2,
    )


def _read_out(
    state: State,
    chunks: Chunks,
    q: jax.Array,
    log_total: jax.Array,
    system: System,
    keys: jax.Array,
    scores: jax.Array,
    written: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """o [batch, heads, chunks, size, V], and the memory after the last chunk.

    The rows that solve the system are written with `keys` [..., size, K] and read with `scores`
    [..., size, size]; `written` [..., K, V] is what else a chunk leaves in the memory.
    """
    inverse = jax.lax.stop_gradient(_inverse(system.lower))
    kept, decay = chunks.writes(keys, log_total).swapaxes(-1, -2), chunks.decay(log_total)
    if written is None:
        written = jnp.zeros_like(kept, shape=(1, 1, kept.shape[2], 1, 1))

    def advance(memory: jax.Array, chunk: tuple) -> tuple[jax.Array, tuple]:
        (lower, right, read), inverse, kept, decay, written = chunk
        rows = _solve_unit(lower, inverse, right + read @ memory)
        return decay * memory + kept @ rows + written, (memory, rows)

    first = state.memory
    if shards.count() > 1:
        moved, given = (
            kept @ _solve_unit(system.lower, inverse, x) for x in (system.read, system.right)
        )
        first = memory_before(first, decay, given + written, moved)
    each = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), (system, inverse, kept, decay, written))
    last, (before, rows) = jax.lax.scan(advance, first, each)
    before, rows = (jnp.moveaxis(x, 0, 2) for x in (before, rows))
    return chunks.reads(q, log_total) @ before + scores @ rows, last


def _step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    u: jax.Array,
    p: jax.Array,
    log_decay: jax.Array,
    segment_ids: jax.Array,
    state: State,
) -> tuple[jax.Array, State]:
    """`diagonal_plus_low_rank` of one token, length 1."""
    wide, segment = state.memory.dtype, segment_ids[:, 0]
    q1, k1, v1, u1, p1, log = (x[:, 0].astype(wide) for x in (q, k, v, u, p, log_decay))
    before = drop_other_documents(state, segment)
    z = jnp.einsum("bhkv,bhk->bhv", before, p1)
    memory = jnp.exp(log)[..., None] * before
    memory += u1[..., None] * z[..., None, :] + k1[..., None] * v1[..., None, :]
    o = jnp.einsum("bhkv,bhk->bhv", memory, q1)
    return o[:, None].astype(v.dtype), State(memory, segment)
