"""Gated DeltaNet: the delta rule with a decay a head (Yang et al., 2024, arXiv:2412.06464)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from pydantic import PositiveFloat, PositiveInt

from jaxformer.model.convolved_heads import ConvolvedCache, convolved_heads
from jaxformer.model.decay_init import a_log_init, dt_bias_init
from jaxformer.model.heads import HeadsOutput
from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.mixers.matrix_memory import MemorySizes
from jaxformer.model.norms import unit_normalize
from jaxformer.model.projection import Projection
from jaxformer.ops.delta_rule import delta_rule


class GatedDeltaConfig(MixerConfig):
    """`head_dim` is that of queries and keys, values have `value_expansion` times as many features.

    negative_eigenvalues: β in [0, 2] instead of [0, 1] (arXiv:2411.12537).
    """

    kind: Literal["gated_delta"] = "gated_delta"
    num_heads: PositiveInt = 6
    head_dim: PositiveInt = 256
    value_expansion: PositiveFloat = 2.0
    conv_width: PositiveInt = 4
    negative_eigenvalues: bool = False

    @property
    def sizes(self) -> MemorySizes:
        value = round(self.value_expansion * self.head_dim)
        return MemorySizes(self.num_heads, self.head_dim, value)


class GatedDelta(Mixer):
    """S_t = α_t (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ,  o_t = S_tᵀ q_t / √K,

    with q, k, v = silu(conv(W x)), q and k of length 1, β = σ(W_β x), and the decay of Mamba-2,
    α = exp(−e^{A} softplus(W_α x + b)) (equation 10);  y = W_o (RMSNorm(o) ⊙ silu(W_g x)).
    """

    config: GatedDeltaConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: ConvolvedCache | None = None,
    ) -> tuple[jax.Array, ConvolvedCache | None]:
        config, sizes, init = self.config, self.config.sizes, self.dims.init
        heads = sizes.heads
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache
        shapes = {
            "query": (heads, sizes.key),
            "key": (heads, sizes.key),
            "value": (heads, sizes.value),
        }
        (q, k, v), convolution = convolved_heads(
            x, self.dims, shapes, config.conv_width, segment_ids, start.convolution
        )
        q, k = unit_normalize(q) * sizes.key**-0.5, unit_normalize(k)

        def per_head(name: str) -> jax.Array:
            wide = jnp.promote_types(x.dtype, jnp.float32)
            matrix = init.matrix(self.dims.d_model)
            return Projection((heads,), ("d_model", "heads"), matrix, name=name)(x).astype(wide)

        names = nn.with_logical_partitioning
        a_log = self.param("a_log", names(a_log_init(0.0, 16.0), ("heads",)), (heads,))
        dt_bias = self.param("dt_bias", names(dt_bias_init, ("heads",)), (heads,))
        log_decay = -jnp.exp(a_log) * nn.softplus(per_head("decay") + dt_bias)
        beta = nn.sigmoid(per_head("beta")) * (2.0 if config.negative_eigenvalues else 1.0)

        o, memory = delta_rule(q, k, v, beta, log_decay[..., None], segment_ids, start.memory)
        y = HeadsOutput(self.dims, gate=nn.silu, name="out")(o, x)
        return y, None if cache is None else ConvolvedCache(memory, convolution)

    @property
    def _channels(self) -> int:
        sizes = self.config.sizes
        return sizes.heads * (2 * sizes.key + sizes.value)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> ConvolvedCache:
        config = self.config
        return ConvolvedCache.empty(batch, config.sizes, config.conv_width, self._channels, dtype)

    def flops(self, length: int) -> float:
        sizes = self.config.sizes
        features = sizes.heads * (2 * sizes.key + 3 * sizes.value + 2)
        convolution = 2.0 * self.config.conv_width * self._channels
        return 2.0 * self.dims.d_model * features + convolution + sizes.flops(length, solves=True)

    def cache_bytes(self, length: int) -> int:
        config = self.config
        return ConvolvedCache.bytes(
            config.sizes, config.conv_width, self._channels, self.dims.dtype
        )
