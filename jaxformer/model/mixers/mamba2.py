"""Mamba-2: a selective state space with one decay per head (Dao and Gu, 2024, arXiv:2405.21060)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from jaxformer.model.decay_init import a_log_init, dt_bias_init
from jaxformer.model.mixers.base import Mixer
from jaxformer.model.mixers.matrix_memory import CHUNK, MemorySizes
from jaxformer.model.mixers.options import ConvWidth
from jaxformer.model.mixers.state_space import StateSpaceConfig
from jaxformer.model.projections import Projection, project_heads
from jaxformer.model.rows import RowInfo
from jaxformer.model.short_convolution import ConvolutionCache, ShortConvolution
from jaxformer.ops.decay import State
from jaxformer.ops.decayed_outer_product import decayed_outer_product

EPSILON = 1e-5


class Mamba2Config(StateSpaceConfig):
    kind: Literal["mamba2"] = "mamba2"
    conv_width: ConvWidth = 4


@struct.dataclass
class Mamba2Cache:
    memory: State
    convolution: ConvolutionCache  # of x, B and C side by side


class Mamba2(Mixer):
    """S_t = e^{−e^{A} Δ_t} S_{t−1} + Δ_t B_t x_tᵀ,  o_t = S_tᵀ C_t + D x_t,

    with x, B, C = silu(conv(W u)), Δ = softplus(W_Δ u + b), and y = W_o RMSNorm(o ⊙ silu(W_z u)),
    normalised over the heads of a group (section 7).
    """

    config: Mamba2Config

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: Mamba2Cache | None = None
    ) -> tuple[jax.Array, Mamba2Cache | None]:
        config, sizes, init = self.config, self._sizes, self.dims.init
        heads, groups, inner = sizes.heads, config.num_groups, sizes.heads * sizes.value
        wide, matrix = sizes.wide(x.dtype), init.matrix(self.dims.d_model)
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache

        def of_groups(name: str) -> jax.Array:
            axes = ("d_model", "group", "state")
            return Projection((groups, sizes.key), axes, matrix, name=name)(x)

        parts = [
            project_heads(x, self.dims, "x", heads, sizes.value),
            of_groups("b"),
            of_groups("c"),
        ]
        mixed, convolution = ShortConvolution(config.conv_width, use_bias=True, name="conv")(
            jnp.concatenate([part.reshape(*x.shape[:2], -1) for part in parts], axis=-1),
            rows.segment_ids,
            start.convolution,
        )
        u, b, c = jnp.split(nn.silu(mixed.astype(wide)), [inner, inner + groups * sizes.key], -1)
        u = u.reshape(*x.shape[:2], heads, sizes.value)
        b, c = (part.reshape(*x.shape[:2], groups, -1) for part in (b, c))

        def per_head(name: str, init: nn.initializers.Initializer) -> jax.Array:
            return self.param(
                name, nn.with_logical_partitioning(init, ("heads",)), (heads,), jnp.float32
            )

        dt = Projection((heads,), ("d_model", "heads"), matrix, name="dt")(x).astype(wide)
        dt = nn.softplus(dt + per_head("dt_bias", dt_bias_init))  # [batch, length, heads]
        log_decay = -jnp.exp(per_head("a_log", a_log_init(1.0, 16.0))) * dt
        o, memory = decayed_outer_product(
            c, b, dt[..., None] * u, log_decay[..., None], rows.segment_ids, start.memory
        )
        o += per_head("skip", nn.initializers.ones)[:, None] * u

        z = project_heads(x, self.dims, "z", heads, sizes.value)
        gated = o * nn.silu(z.astype(wide))
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones, ("heads", "head_dim")),
            (heads, sizes.value),
            jnp.float32,
        )
        y = Projection(
            (self.dims.d_model,),
            ("heads", "head_dim", "d_model"),
            init.output_matrix(inner, self.dims.num_layers),
            name="output",
        )((_normalize_groups(gated, groups) * scale).astype(x.dtype))
        return y, None if cache is None else Mamba2Cache(memory, convolution)

    @property
    def _sizes(self) -> MemorySizes:
        return self.config.sizes(self.dims.d_model)

    @property
    def _channels(self) -> int:
        sizes = self._sizes
        return sizes.heads * sizes.value + 2 * self.config.num_groups * sizes.key

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> Mamba2Cache:
        width = self.config.conv_width
        convolution = ConvolutionCache.empty(batch, width, self._channels, dtype)
        return Mamba2Cache(self._sizes.empty(batch, dtype), convolution)

    def flops(self, length: int) -> float:
        sizes = self._sizes
        features = self._channels + sizes.heads * (2 * sizes.value + 1)
        convolution = 2.0 * self.config.conv_width * self._channels
        shared = sizes.heads - self.config.num_groups  # heads that reuse another head's C Bᵀ
        pairs = sizes.flops(length) - shared * 2.0 * min(CHUNK, length) * sizes.key
        return 2.0 * self.dims.d_model * features + convolution + pairs

    def cache_bytes(self, length: int) -> int:
        width, dtype = self.config.conv_width, self.dims.dtype
        return self._sizes.bytes(dtype) + ConvolutionCache.bytes(width, self._channels, dtype)


def _normalize_groups(x: jax.Array, groups: int) -> jax.Array:
    """x / √(mean(x²) + ε) over the heads of a group together: x [batch, length, heads, head_dim].

    x, a product of five projections, is first divided by its largest entry: for large inputs, its
    square would overflow float32.
    """
    grouped = x.reshape(*x.shape[:2], groups, -1)
    size = jnp.max(jnp.abs(grouped), axis=-1, keepdims=True)
    size = jax.lax.stop_gradient(jnp.maximum(size, 1.0))
    grouped = grouped / size
    mean = jnp.mean(grouped * grouped, axis=-1, keepdims=True)
    return (grouped * jax.lax.rsqrt(mean + EPSILON / size / size)).reshape(x.shape)
