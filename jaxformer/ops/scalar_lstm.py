"""The scalar memory of xLSTM: cells whose gates read the output of the token before.

Beck et al., 2024, arXiv:2405.04517, equations 8 to 18.
"""

import jax
import jax.numpy as jnp
from flax import struct

from jaxformer.ops import shards


@struct.dataclass
class Cells:
    """What one token hands to the next, each [batch, heads, head_dim] but the last."""

    c: jax.Array  # cell state, times e^{−m}
    n: jax.Array  # normaliser, times e^{−m}
    m: jax.Array  # stabiliser
    h: jax.Array  # output
    segment: jax.Array  # [batch], the document they belong to


def scalar_lstm(
    gates: jax.Array, recurrent: jax.Array, segment_ids: jax.Array, cells: Cells
) -> tuple[jax.Array, Cells]:
    """c_t = f_t ⊙ c_{t−1} + i_t ⊙ z_t,  n_t = f_t ⊙ n_{t−1} + i_t,  h_t = o_t ⊙ c_t / n_t,

    with z = tanh(z̃), i = e^{ĩ}, f = σ(f̃), o = σ(õ), where each of z̃, ĩ, f̃ and õ is the
    given gate + R h_{t−1}. R makes it sequential: one token after another.

    Args:
        gates: z̃, ĩ, f̃ and õ without R h, [4, batch, length, heads, head_dim].
        recurrent: R of the four, [4, heads, head_dim, head_dim].
        segment_ids: [batch, length]; the cells are dropped where they change.
        cells: what came before.

    Returns:
        (h [batch, length, heads, head_dim], the cells after the last token).
    """
    lowest = jnp.finfo(gates.dtype).min
    # The four side by side: one product per token.
    gates = jnp.moveaxis(gates, 0, -2).reshape(*gates.shape[1:4], -1)
    recurrent = jnp.moveaxis(recurrent, 0, -2).reshape(*recurrent.shape[1:3], -1)

    def advance(before: Cells, token: tuple) -> tuple[Cells, jax.Array]:
        gates, segment = token  # [batch, heads, 4 · head_dim], [batch]
        same = (before.segment == segment)[:, None, None]
        h = jnp.where(same, before.h, 0.0)
        z, log_i, f, o = jnp.split(gates + jnp.einsum("bhi,hij->bhj", h, recurrent), 4, axis=-1)
        # i and what is kept of the cells before are divided by e^m, the larger of the two.
        log_kept = jnp.where(same, jax.nn.log_sigmoid(f) + before.m, lowest)
        m = jnp.maximum(log_kept, log_i)
        kept, i = jnp.exp(log_kept - m), jnp.exp(log_i - m)
        c, n = kept * before.c + i * jnp.tanh(z), kept * before.n + i
        h = jax.nn.sigmoid(o) * c / n
        return Cells(c, n, m, h, segment), h

    tokens = (jnp.moveaxis(gates, 1, 0), segment_ids.T)
    cells = shards.one_after_another(cells, lambda cells: jax.lax.scan(advance, cells, tokens)[0])
    cells, h = jax.lax.scan(advance, cells, tokens)
    return jnp.moveaxis(h, 0, 1), cells
