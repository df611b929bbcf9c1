"""The real-gated linear recurrent unit in Griffin's recurrent block (De et al., 2024,
arXiv:2402.19427)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from pydantic import Field, PositiveFloat, PositiveInt

from jaxformer.model.block_diagonal import BlockDiagonal
from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.mixers.matrix_memory import heads_divide
from jaxformer.model.mixers.options import ConvWidth
from jaxformer.model.positions import PositionsUnion
from jaxformer.model.projections import Projection
from jaxformer.model.rows import RowInfo
from jaxformer.model.short_convolution import ConvolutionCache, ShortConvolution
from jaxformer.ops import shards
from jaxformer.ops.diagonal import diagonal_recurrence

GATE_POWER = 8.0  # c
LEAST_DECAY, MOST_DECAY = 0.9, 0.999


class RGLRUConfig(MixerConfig):
    kind: Literal["rglru"] = "rglru"
    num_heads: PositiveInt = Field(8, description="blocks of the block-diagonal gates")
    expansion: PositiveFloat = Field(
        1.0, description="the width of the state, as a multiple of d_model (4/3 in the paper)"
    )
    conv_width: ConvWidth = 4

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        heads_divide("expansion × d_model", self.expansion * d_model, self.num_heads)


@struct.dataclass
class RGLRUCache:
    state: jax.Array  # [batch, channels]
    segment: jax.Array  # [batch], the document it belongs to
    convolution: ConvolutionCache


class RGLRU(Mixer):
    """h_t = a_t ⊙ h_{t−1} + √(1 − a_t²) ⊙ (i_t ⊙ u_t),  log a_t = −8 softplus(Λ) ⊙ r_t,

    with u = conv(W_u x), and r = σ(W_r u + b_r) and i = σ(W_i u + b_i) with a block per head
    (section 2.4);  y = W_o (gelu(W_g x) ⊙ h), with a bias beside each W. For a document's first
    token, √(1 − a²) is 1.
    """

    form = "scan"

    config: RGLRUConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: RGLRUCache | None = None
    ) -> tuple[jax.Array, RGLRUCache | None]:
        config, init, channels = self.config, self.dims.init, self._channels
        wide = jnp.promote_types(x.dtype, jnp.float32)
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache

        def project_in(name: str) -> jax.Array:
            matrix = init.matrix(self.dims.d_model)
            names = ("d_model", "d_hidden")
            return Projection((channels,), names, matrix, use_bias=True, name=name)(x)

        u, convolution = ShortConvolution(config.conv_width, use_bias=True, name="conv")(
            project_in("input"), rows.segment_ids, start.convolution
        )
        in_heads = u.reshape(*u.shape[:2], config.num_heads, -1)

        def gate(name: str) -> jax.Array:
            matrix = init.matrix(channels // config.num_heads)
            logits = BlockDiagonal(matrix, use_bias=True, name=name)(in_heads)
            return nn.sigmoid(logits.reshape(u.shape).astype(wide))

        decay = self.param(
            "decay",
            nn.with_logical_partitioning(_decay_init, ("d_hidden",)),
            (channels,),
            jnp.float32,
        )
        log_a = -GATE_POWER * nn.softplus(decay.astype(wide)) * gate("recurrence_gate")
        # Kept away from zero, where a root has no gradient.
        input_factor = jnp.sqrt(jnp.maximum(-jnp.expm1(2 * log_a), jnp.finfo(wide).tiny))
        before = shards.documents_before(rows.segment_ids, start.segment)
        input_factor = jnp.where((before == rows.segment_ids)[..., None], input_factor, 1.0)
        entering = input_factor * gate("input_gate") * u.astype(wide)
        h = diagonal_recurrence(
            jnp.exp(log_a), entering, rows.segment_ids, start.state, start.segment
        )
        y = Projection(
            (self.dims.d_model,),
            ("d_hidden", "d_model"),
            init.output_matrix(channels, self.dims.num_layers),
            use_bias=True,
            name="output",
        )(nn.gelu(project_in("gate")) * h.astype(x.dtype))
        if cache is None:
            return y, None
        return y, RGLRUCache(h[:, -1], rows.segment_ids[:, -1], convolution)

    @property
    def _channels(self) -> int:
        return round(self.config.expansion * self.dims.d_model)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> RGLRUCache:
        channels, wide = self._channels, jnp.promote_types(dtype, jnp.float32)
        return RGLRUCache(
            jnp.zeros((batch, channels), wide),
            jnp.full((batch,), -1, jnp.int32),
            ConvolutionCache.empty(batch, self.config.conv_width, channels, dtype),
        )

    def flops(self, length: int) -> float:
        config, channels = self.config, self._channels
        gates = 4.0 * channels * channels / config.num_heads
        elementwise = (2.0 * config.conv_width + 10.0) * channels
        return 6.0 * self.dims.d_model * channels + gates + elementwise

    def cache_bytes(self, length: int) -> int:
        channels, dtype = self._channels, self.dims.dtype
        state = channels * jnp.promote_types(dtype, jnp.float32).itemsize + 4
        return state + ConvolutionCache.bytes(self.config.conv_width, channels, dtype)


def _decay_init(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Λ for which e^{−8 softplus(Λ)}, the decay at r = 1, is uniform in [0.9, 0.999]."""
    decay = jax.random.uniform(key, shape, dtype, LEAST_DECAY, MOST_DECAY)
    return jnp.log(jnp.expm1(-jnp.log(decay) / GATE_POWER))
