"""The scalar memory of xLSTM: a recurrence through its own output, one token after another (Beck et
al., 2024, arXiv:2405.04517)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from pydantic import Field, PositiveInt

from jaxformer.model.block_diagonal import BlockDiagonal
from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.mixers.matrix_memory import heads_divide
from jaxformer.model.mixers.options import ConvWidth
from jaxformer.model.norms import layer_normalize
from jaxformer.model.positions import PositionsUnion
from jaxformer.model.rows import RowInfo
from jaxformer.model.short_convolution import ConvolutionCache, ShortConvolution
from jaxformer.ops.scalar_lstm import Cells, scalar_lstm

GATES = ("candidate", "input_gate", "forget_gate", "output_gate")  # z, i, f, o


class SLSTMConfig(MixerConfig):
    """A cell sees only the outputs of its own head."""

    kind: Literal["slstm"] = "slstm"
    num_heads: PositiveInt = Field(
        4, description="the number of heads, each of d_model / num_heads cells"
    )
    conv_width: ConvWidth = 4

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        heads_divide("d_model", d_model, self.num_heads)


@struct.dataclass
class SLSTMCache:
    cells: Cells
    convolution: ConvolutionCache


class SLSTM(Mixer):
    """y = scale ⊙ LayerNorm(h) per head, where h is what `scalar_lstm` makes of the gates W u + b.

    W and the recurrent R have one block per head; u is x for z and o, silu(conv(x)) for i and f
    (figure 10).

    There is no output matrix, as in the authors' code: heads meet in the FFN.
    """

    form = "step"

    config: SLSTMConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: SLSTMCache | None = None
    ) -> tuple[jax.Array, SLSTMCache | None]:
        config, heads, head_dim = self.config, self.config.num_heads, self._head_dim
        wide, names = jnp.promote_types(x.dtype, jnp.float32), nn.with_logical_partitioning
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache

        mixed, convolution = ShortConvolution(
            config.conv_width, use_bias=True, axis_name="heads", name="conv"
        )(x, rows.segment_ids, start.convolution)
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
        h, cells = scalar_lstm(gates, recurrent.astype(wide), rows.segment_ids, start.cells)
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
        gates = 2 * 4 * (2.0 * self._head_dim)  # products with the input and the previous output
        elementwise = 2.0 * self.config.conv_width + 30.0
        return self.dims.d_model * (gates + elementwise)

    def cache_bytes(self, length: int) -> int:
        d_model, dtype = self.dims.d_model, self.dims.dtype
        cells = 4 * d_model * jnp.promote_types(dtype, jnp.float32).itemsize + 4
        return cells + ConvolutionCache.bytes(self.config.conv_width, d_model, dtype)


def _bias_init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Zero, but for forget gates 5 − 12 (j / (K − 1))^0.3: from 5 down to −7 along a head.

    The authors start their first block like this; deeper ones raise the power to 1.6.
    """
    head_dim = shape[-1]
    forget = 5.0 - 12.0 * (jnp.arange(head_dim, dtype=dtype) / max(head_dim - 1, 1)) ** 0.3
    return jnp.zeros(shape, dtype).at[GATES.index("forget_gate")].set(forget)
