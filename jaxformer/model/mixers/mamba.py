"""Mamba: a diagonal selective state space, with a state for each channel (Gu and Dao, 2023,
arXiv:2312.00752)."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from pydantic import Field, PositiveFloat, PositiveInt

from jaxformer.model.decay_init import dt_bias_init, s4d_real_init
from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.mixers.options import ConvWidth
from jaxformer.model.norms import Norm, NormConfig
from jaxformer.model.projections import Projection
from jaxformer.model.rows import RowInfo
from jaxformer.model.short_convolution import ConvolutionCache, ShortConvolution
from jaxformer.ops.diagonal import Carried
from jaxformer.ops.selective_scan import selective_scan


class MambaConfig(MixerConfig):
    kind: Literal["mamba"] = "mamba"
    expansion: PositiveFloat = Field(
        2.0, description="the number of channels, as a multiple of d_model"
    )
    state_size: PositiveInt = Field(16, description="states per channel")
    dt_rank: PositiveInt | None = Field(
        None,
        description="the rank of the projection to the step Δ; d_model / 16, rounded up, if null",
    )
    conv_width: ConvWidth = 4
    inner_norms: bool = Field(
        False,
        description="RMSNorms of B, of C and of W₁ u, of which Δ is made (Jamba, arXiv:2403.19887)",
    )

    def rank(self, d_model: int) -> int:
        return self.dt_rank or math.ceil(d_model / 16)


@struct.dataclass
class MambaCache:
    state: jax.Array  # [batch, channels, state_size]
    segment: jax.Array  # [batch], the document it belongs to
    convolution: ConvolutionCache


class Mamba(Mixer):
    """h_t = e^{Δ_t A} ⊙ h_{t−1} + (Δ_t ⊙ u_t) B_tᵀ,  y = W_o ((h_t C_t + D ⊙ u_t) ⊙ silu(W_z x_t)),

    with u = silu(conv(W_u x)), B and C linear in u, Δ = softplus(W₂ W₁ u + b), and A = −e^{A_log},
    which starts at −1, …, −state_size (algorithm 2, section 3.6). With `inner_norms`, RMSNorm(B),
    RMSNorm(C) and RMSNorm(W₁ u) stand for B, C and W₁ u.
    """

    form = "scan"

    config: MambaConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: MambaCache | None = None
    ) -> tuple[jax.Array, MambaCache | None]:
        config, init, channels = self.config, self.dims.init, self._channels
        rank, size = config.rank(self.dims.d_model), config.state_size
        wide, names = jnp.promote_types(x.dtype, jnp.float32), nn.with_logical_partitioning
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache

        def project_in(name: str) -> jax.Array:
            matrix = init.matrix(self.dims.d_model)
            return Projection((channels,), ("d_model", "d_hidden"), matrix, name=name)(x)

        mixed, convolution = ShortConvolution(config.conv_width, use_bias=True, name="conv")(
            project_in("input"), rows.segment_ids, start.convolution
        )
        u = nn.silu(mixed)
        selected = Projection(
            (rank + 2 * size,), ("d_hidden", "rank"), init.matrix(channels), name="select"
        )(u)
        low, b, c = jnp.split(selected, [rank, rank + size], axis=-1)
        if config.inner_norms:
            low = Norm(NormConfig(), axis_name="rank", name="dt_norm")(low)
            b = Norm(NormConfig(), axis_name="state", name="b_norm")(b)
            c = Norm(NormConfig(), axis_name="state", name="c_norm")(c)
        # Uniform in ±1/√rank.
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        step = Projection((channels,), ("rank", "d_hidden"), uniform, name="dt")(low)
        dt_bias = self.param(
            "dt_bias", names(dt_bias_init, ("d_hidden",)), (channels,), jnp.float32
        )
        dt = nn.softplus(step.astype(wide) + dt_bias.astype(wide))
        a_log = self.param(
            "a_log", names(s4d_real_init, ("d_hidden", "state")), (channels, size), jnp.float32
        )
        skip = self.param(
            "skip", names(nn.initializers.ones, ("d_hidden",)), (channels,), jnp.float32
        )

        a = -jnp.exp(a_log.astype(wide))
        carried = Carried(start.state, start.segment)
        h, last = selective_scan(dt, u, b, c, a, rows.segment_ids, carried)
        h = (h + skip * u).astype(x.dtype) * nn.silu(project_in("gate"))
        y = Projection(
            (self.dims.d_model,),
            ("d_hidden", "d_model"),
            init.output_matrix(channels, self.dims.num_layers),
            name="output",
        )(h)
        return y, None if cache is None else MambaCache(last.h, last.segment, convolution)

    @property
    def _channels(self) -> int:
        return round(self.config.expansion * self.dims.d_model)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> MambaCache:
        channels, wide = self._channels, jnp.promote_types(dtype, jnp.float32)
        return MambaCache(
            jnp.zeros((batch, channels, self.config.state_size), wide),
            jnp.full((batch,), -1, jnp.int32),
            ConvolutionCache.empty(batch, self.config.conv_width, channels, dtype),
        )

    def flops(self, length: int) -> float:
        config, channels, d_model = self.config, self._channels, self.dims.d_model
        rank, size = config.rank(d_model), config.state_size
        features = 3 * d_model + (rank + 2 * size) + rank + config.conv_width
        # A state's decay takes one product, its input one, its update two, its output two.
        return channels * (2.0 * features + 6.0 * size)

    def cache_bytes(self, length: int) -> int:
        channels, dtype = self._channels, self.dims.dtype
        wide = jnp.promote_types(dtype, jnp.float32).itemsize
        state = channels * self.config.state_size * wide + 4
        return state + ConvolutionCache.bytes(self.config.conv_width, channels, dtype)
