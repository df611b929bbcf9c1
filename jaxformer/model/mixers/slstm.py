"""The scalar memory of xLSTM: a recurrence through its own output, one token after another (Beck et
al., 2024, arXiv:2405.04517)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from pydantic import PositiveInt

from jaxformer.model.block_diagonal import BlockDiagonal
from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.mixers.matrix_memory import heads_divide
from jaxformer.model.norms import layer_normalize
from jaxformer.model.positions import PositionsUnion
from jaxformer.model.short_convolution import ConvolutionCache, ShortConvolution
from jaxformer.ops import shards

GATES = ("candidate", "input_gate", "forget_gate", "output_gate")  # z, i, f, o


class SLSTMConfig(MixerConfig):
    """Heads of d_model / num_heads cells, which see their own head alone."""

    kind: Literal["slstm"] = "slstm"
    num_heads: PositiveInt = 4
    conv_width: PositiveInt = 4

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        heads_divide("d_model", d_model, self.num_heads)


@struct.dataclass
class Cells:
    """What one token hands to the next, each [batch, heads, head_dim] but the last."""

    c: jax.Array  # cell state, times e^{−m}
    n: jax.Array  # normaliser, times e^{−m}
    m: jax.Array  # stabiliser
    h: jax.Array  # output
    segment: jax.Array  # [batch], the document they belong to


@struct.dataclass
class SLSTMCache:
    cells: Cells
    convolution: ConvolutionCache


class SLSTM(Mixer):
    """c_t = f_t ⊙ c_{t−1} + i_t ⊙ z_t,  n_t = f_t ⊙ n_{t−1} + i_t,  h_t = o_t ⊙ c_t / n_t,

    with z = tanh(z̃), i = e^{ĩ}, f = σ(f̃), o = σ(õ), each of the four before its activation
    W u_t + R h_{t−1} + b, a block a head; u is x for z and o, silu(conv(x)) for i and f (equations
    8 to 18, figure 10);  y = scale ⊙ LayerNorm(h), head by head.

    R makes it sequential: neither chunks nor a parallel scan compute it, and a row takes as many
    steps as it has tokens. There is no output matrix, as in the authors' code: heads meet in the
    FFN.
    """

    form = "step"

    config: SLSTMConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: SLSTMCache | None = None,
    ) -> tuple[jax.Array, SLSTMCache | None]:
        config, heads, head_dim = self.config, self.config.num_heads, self._head_dim
        wide, names = jnp.promote_types(x.dtype, jnp.float32), nn.with_logical_partitioning
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache

        mixed, convolution = ShortConvolution(
            config.conv_width, use_bias=True, axis_name="heads", name="conv"
        )(x, segment_ids, start.convolution)
        convolved = nn.silu(mixed)
        inputs = []  # of every gate, [batch, length, heads, head_dim]
        for name in GATES:
            u = convolved if name in ("input_gate", "forget_gate") else x
            block = BlockDiagonal(self.dims.init.matrix(head_dim), name=name)
            inputs.append(block(u.reshape(*u.shape[:2], heads, head_dim)))
        bias = self.param(
            "bias",
            names(_bias_init, ("gates", "heads", "head_dim")),
            (4, heads, head_dim),
            jnp.float32,
        )
        recurrent = self.param(
            "recurrent",
            names(nn.initializers.zeros, ("gates", "heads", "head_input", "head_dim")),
            (4, heads, head_dim, head_dim),
            jnp.float32,
        )
        gates = jnp.stack(inputs).astype(wide) + bias.astype(wide)[:, None, None]
        h, cells = _recurrence(gates, recurrent.astype(wide), segment_ids, start.cells)
        scale = self.param(
            "scale",
            names(nn.initializers.ones, ("heads", "head_dim")),
            (heads, head_dim),
            jnp.float32,
        )
        y = layer_normalize(h, 1e-6) * scale
        y = y.reshape(x.shape).astype(x.dtype)
        return y, None if cache is None else SLSTMCache(cells, convolution)

    @property
    def _head_dim(self) -> int:
        return self.dims.d_model // self.config.num_heads

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> SLSTMCache:
        wide = jnp.promote_types(dtype, jnp.float32)
        zeros = jnp.zeros((batch, self.config.num_heads, self._head_dim), wide)
        return SLSTMCache(
            Cells(zeros, zeros, zeros, zeros, jnp.full((batch,), -1, jnp.int32)),
            ConvolutionCache.empty(batch, self.config.conv_width, self.dims.d_model, dtype),
        )

    def flops(self, length: int) -> float:
        gates = 2 * 4 * (2.0 * self._head_dim)  # of the input and of the output before
        elementwise = 2.0 * self.config.conv_width + 30.0
        return self.dims.d_model * (gates + elementwise)

    def cache_bytes(self, length: int) -> int:
        d_model, dtype = self.dims.d_model, self.dims.dtype
        cells = 4 * d_model * jnp.promote_types(dtype, jnp.float32).itemsize + 4
        return cells + ConvolutionCache.bytes(self.config.conv_width, d_model, dtype)


def _recurrence(
    gates: jax.Array, recurrent: jax.Array, segment_ids: jax.Array, cells: Cells
) -> tuple[jax.Array, Cells]:
    """h of every token, one after another.

    Args:
        gates: W u + b of z, i, f, o, [4, batch, length, heads, head_dim].
        recurrent: R of the four, [4, heads, head_dim, head_dim].

    Returns:
        (h [batch, length, heads, head_dim], the cells after the last token).
    """
    lowest = jnp.finfo(gates.dtype).min
    # The four side by side: one product a step.
    gates = jnp.moveaxis(gates, 0, -2).reshape(*gates.shape[1:4], -1)
    recurrent = jnp.moveaxis(recurrent, 0, -2).reshape(*recurrent.shape[1:3], -1)

    def advance(before: Cells, token: tuple) -> tuple[Cells, jax.Array]:
        gates, segment = token  # [batch, heads, 4 · head_dim], [batch]
        same = (before.segment == segment)[:, None, None]
        h = jnp.where(same, before.h, 0.0)
        z, log_i, f, o = jnp.split(gates + jnp.einsum("bhi,hij->bhj", h, recurrent), 4, axis=-1)
        # i and what is kept of the cells before are divided by e^m, the larger of the two.
        log_kept = jnp.where(same, nn.log_sigmoid(f) + before.m, lowest)
        m = jnp.maximum(log_kept, log_i)
        kept, i = jnp.exp(log_kept - m), jnp.exp(log_i - m)
        c, n = kept * before.c + i * jnp.tanh(z), kept * before.n + i
        h = nn.sigmoid(o) * c / n
        return Cells(c, n, m, h, segment), h

    tokens = (jnp.moveaxis(gates, 1, 0), segment_ids.T)
    cells = shards.one_after_another(cells, lambda cells: jax.lax.scan(advance, cells, tokens)[0])
    cells, h = jax.lax.scan(advance, cells, tokens)
    return jnp.moveaxis(h, 0, 1), cells


def _bias_init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Zero but for the forget gates', from 5 down to −7 along a head: 5 − 12 (j / (K − 1))^0.3.

    That is the authors' start of a first block; deeper ones raise the power to 1.6.
    """
    head_dim = shape[-1]
    forget = 5.0 - 12.0 * (jnp.arange(head_dim, dtype=dtype) / max(head_dim - 1, 1)) ** 0.3
    return jnp.zeros(shape, dtype).at[GATES.index("forget_gate")].set(forget)
