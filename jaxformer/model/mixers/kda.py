"""Kimi Delta Attention: the delta rule with a decay a key channel (arXiv:2510.26692)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from pydantic import PositiveFloat, PositiveInt

from jaxformer.model.convolved_heads import ConvolvedCache, convolved_heads
from jaxformer.model.decay_init import a_log_init, dt_bias_init
from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.mixers.matrix_memory import MemorySizes
from jaxformer.model.norms import Norm, NormConfig, unit_normalize
from jaxformer.model.projection import Projection
from jaxformer.ops.delta_rule import delta_rule


class KDAConfig(MixerConfig):
    """`head_dim` is that of queries and keys, and the rank of the projections to the decay and to
    the output gate; values have `value_expansion` times as many features."""

    kind: Literal["kda"] = "kda"
    num_heads: PositiveInt = 16
    head_dim: PositiveInt = 128
    value_expansion: PositiveFloat = 1.0
    conv_width: PositiveInt = 4

    @property
    def sizes(self) -> MemorySizes:
        value = round(self.value_expansion * self.head_dim)
        return MemorySizes(self.num_heads, self.head_dim, value)


class KDA(Mixer):
    """S_t = (I − β_t k_t k_tᵀ) Diag(α_t) S_{t−1} + β_t k_t v_tᵀ,  o_t = S_tᵀ q_t / √K,

    with q, k, v = silu(conv(W x)), q and k of length 1, β = σ(W_β x), and a decay a channel,
    α = exp(−e^{A} softplus(W₂ W₁ x + b)), A a head;  y = W_o (RMSNorm(o) ⊙ σ(U₂ U₁ x + c)).
    """

    config: KDAConfig

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
        heads, wide = sizes.heads, sizes.wide(x.dtype)
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

        names = nn.with_logical_partitioning
        a_log = self.param("a_log", names(a_log_init(1.0, 16.0), ("heads",)), (heads,))
        dt_bias = self.param(
            "dt_bias", names(dt_bias_init, ("heads", "head_dim")), (heads, sizes.key)
        )
        step = nn.softplus(self._low_rank(x, "decay", sizes.key).astype(wide) + dt_bias)
        log_decay = -jnp.exp(a_log)[:, None] * step
        matrix = init.matrix(self.dims.d_model)
        beta = Projection((heads,), ("d_model", "heads"), matrix, name="beta")(x)
        beta = nn.sigmoid(beta.astype(wide))

        o, memory = delta_rule(q, k, v, beta, log_decay, segment_ids, start.memory)
        gate = nn.sigmoid(self._low_rank(x, "gate", sizes.value, use_bias=True))
        y = Projection(
            (self.dims.d_model,),
            ("heads", "head_dim", "d_model"),
            init.output_matrix(heads * sizes.value, self.dims.num_layers),
            name="output",
        )(Norm(NormConfig(), axis_name="head_dim", name="norm")(o) * gate)
        return y, None if cache is None else ConvolvedCache(memory, convolution)

    def _low_rank(
        self, x: jax.Array, name: str, features: int, *, use_bias: bool = False
    ) -> jax.Array:
        """[batch, length, d_model] → [batch, length, heads, features], through rank head_dim."""
        rank, init = self.config.head_dim, self.dims.init
        low = Projection(
            (rank,), ("d_model", "rank"), init.matrix(self.dims.d_model), name=f"{name}_in"
        )(x)
        return Projection(
            (self.config.num_heads, features),
            ("rank", "heads", "head_dim"),
            init.matrix(rank),
            use_bias,
            name=f"{name}_out",
        )(low)

    @property
    def _channels(self) -> int:
        sizes = self.config.sizes
        return sizes.heads * (2 * sizes.key + sizes.value)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> ConvolvedCache:
        config = self.config
        return ConvolvedCache.empty(batch, config.sizes, config.conv_width, self._channels, dtype)

    def flops(self, length: int) -> float:
        config, sizes = self.config, self.config.sizes
        features = self._channels + sizes.heads * (sizes.value + 1) + 2 * config.head_dim
        low_rank = 2.0 * config.head_dim * sizes.heads * (sizes.key + sizes.value)
        convolution = 2.0 * config.conv_width * self._channels
        projections = 2.0 * self.dims.d_model * features + low_rank + convolution
        return projections + sizes.flops(length, solves=True)

    def cache_bytes(self, length: int) -> int:
        config = self.config
        return ConvolvedCache.bytes(
            config.sizes, config.conv_width, self._channels, self.dims.dtype
        )
