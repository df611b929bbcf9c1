"""DeltaNet: the memory of the delta rule (Yang et al., 2024, arXiv:2406.06484)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from pydantic import PositiveFloat, PositiveInt

from jaxformer.model.convolved_heads import ConvolvedCache, convolved_heads
from jaxformer.model.heads import HeadsOutput
from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.mixers.matrix_memory import MemorySizes
from jaxformer.model.norms import unit_normalize
from jaxformer.model.projection import Projection
from jaxformer.ops.delta_rule import delta_rule


class DeltaConfig(MixerConfig):
    """`head_dim` is that of queries and keys, values have `value_expansion` times as many features.

    negative_eigenvalues: β in [0, 2] instead of [0, 1] (arXiv:2411.12537). output_gate: silu of a
    projection on every output feature.
    """

    kind: Literal["delta"] = "delta"
    num_heads: PositiveInt = 8
    head_dim: PositiveInt = 128
    value_expansion: PositiveFloat = 1.0
    conv_width: PositiveInt = 4
    negative_eigenvalues: bool = False
    output_gate: bool = False

    @property
    def sizes(self) -> MemorySizes:
        value = round(self.value_expansion * self.head_dim)
        return MemorySizes(self.num_heads, self.head_dim, value)


class Delta(Mixer):
    """S_t = (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ,  o_t = S_tᵀ q_t / √K,

    with q, k, v = silu(conv(W x)), q and k of length 1, and β = σ(W_β x);
    y = W_o RMSNorm(o), with an output gate W_o (RMSNorm(o) ⊙ silu(W_g x)).
    """

    config: DeltaConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: ConvolvedCache | None = None,
    ) -> tuple[jax.Array, ConvolvedCache | None]:
        config, sizes = self.config, self.config.sizes
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache
        shapes = {
            "query": (sizes.heads, sizes.key),
            "key": (sizes.heads, sizes.key),
            "value": (sizes.heads, sizes.value),
        }
        (q, k, v), convolution = convolved_heads(
            x, self.dims, shapes, config.conv_width, segment_ids, start.convolution
        )
        q, k = unit_normalize(q) * sizes.key**-0.5, unit_normalize(k)
        matrix = self.dims.init.matrix(self.dims.d_model)
        beta = Projection((sizes.heads,), ("d_model", "heads"), matrix, name="beta")(x)
        beta = nn.sigmoid(beta.astype(sizes.wide(x.dtype)))
        if config.negative_eigenvalues:
            beta *= 2.0
        no_decay = jnp.zeros_like(beta)[..., None]
        o, memory = delta_rule(q, k, v, beta, no_decay, segment_ids, start.memory)
        gate = nn.silu if config.output_gate else None
        y = HeadsOutput(self.dims, gate=gate, name="out")(o, x)
        return y, None if cache is None else ConvolvedCache(memory, convolution)

    @property
    def _channels(self) -> int:
        sizes = self.config.sizes
        return sizes.heads * (2 * sizes.key + sizes.value)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> ConvolvedCache:
        config = self.config
        return ConvolvedCache.empty(batch, config.sizes, config.conv_width, self._channels, dtype)

    def flops(self, length: int) -> float:
        config, sizes = self.config, self.config.sizes
        outputs = 2 if config.output_gate else 1
        features = self._channels + sizes.heads * (outputs * sizes.value + 1)
        convolution = 2.0 * config.conv_width * self._channels
        return 2.0 * self.dims.d_model * features + convolution + sizes.flops(length, solves=True)

    def cache_bytes(self, length: int) -> int:
        config = self.config
        return ConvolvedCache.bytes(
            config.sizes, config.conv_width, self._channels, self.dims.dtype
        )
