"""The selective state space of Mamba: diagonal, with a separate state for every channel.

Gu and Dao, 2023, arXiv:2312.00752, algorithm 2.
"""

import jax
import jax.numpy as jnp

from jaxformer.ops.diagonal import Carried, associative_recurrence, in_chunks


def selective_scan(
    dt: jax.Array,
    u: jax.Array,
    b: jax.Array,
    c: jax.Array,
    a: jax.Array,
    segment_ids: jax.Array,
    state: Carried,
    *,
    chunk: int = 64,
) -> tuple[jax.Array, Carried]:
    """h_t = e^{dt_t a} ⊙ h_{t−1} + (dt_t ⊙ u_t) b_tᵀ,  y_t = h_t c_t, starting anew at each
    document.

    Args:
        dt, u: [batch, length, channels], dt as wide as the state.
        b, c: [batch, length, state_size].
        a: [channels, state_size].
        segment_ids: [batch, length]; the state is dropped where they change.
        state: what came before, h [batch, channels, state_size].
        chunk: tokens whose states are held at once; all others leave only y.

    Returns:
        (y [batch, length, channels] in dt's type, the state after the last token).
    """

    def advance(carried: Carried, tokens: tuple) -> tuple[Carried, jax.Array]:
        *inputs, segments = tokens
        dt, u, b, c = (part.astype(a.dtype) for part in inputs)
        decay = jnp.exp(dt[..., None] * a)  # [batch, chunk, channels, state_size]
        entering = jnp.einsum("blc,bln->blcn", dt * u, b)
        h = associative_recurrence(decay, entering, segments, *carried)
        return Carried(h[:, -1], segments[:, -1]), jnp.einsum("blcn,bln->blc", h, c)

    last, y = in_chunks(advance, state, (dt, u, b, c, segment_ids), chunk)
    return y, last
