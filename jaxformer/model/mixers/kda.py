"""Kimi Delta Attention: the delta rule with one decay per key channel (arXiv:2510.26692)."""

from typing import Literal

import flax.linen as nn
import jax
from pydantic import Field, PositiveInt

from jaxformer.model.mixers.channel_decay import ChannelDecay
from jaxformer.model.mixers.convolved_memory import ConvolvedMemoryCache, ConvolvedMemoryConfig
from jaxformer.model.mixers.options import NumHeads, ValueExpansion
from jaxformer.model.rows import RowInfo
from jaxformer.ops.delta_rule import delta_rule


class KDAConfig(ConvolvedMemoryConfig):
    kind: Literal["kda"] = "kda"
    num_heads: NumHeads = 16
    head_dim: PositiveInt = Field(
        128,
        description="features of a query and a key, per head, and the rank of the projections "
        "to the decay and the output gate",
    )
    value_expansion: ValueExpansion = 1.0
    gate_bias: bool = Field(True, description="adds a bias to the projection to the output gate")


class KDA(ChannelDecay):
    """S_t = (I − β_t k_t k_tᵀ) Diag(α_t) S_{t−1} + β_t k_t v_tᵀ,  o_t = S_tᵀ q_t / √K,

    with q, k, v = silu(conv(W x)), q and k of length 1, β = σ(W_β x), and a decay per channel,
    α = exp(−e^{A} softplus(W₂ W₁ x + b)), A per head;  y = W_o (RMSNorm(o) ⊙ σ(U₂ U₁ x + c)),
    without c unless `gate_bias`.
    """

    config: KDAConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: ConvolvedMemoryCache | None = None
    ) -> tuple[jax.Array, ConvolvedMemoryCache | None]:
        config, sizes = self.config, self.config.sizes
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache
        q, k, v, convolution = self._queries_keys_values(x, rows.segment_ids, start.convolution)
        log_decay = self._channel_log_decay(x)
        beta = nn.sigmoid(self._per_head(x, "beta"))

        o, memory = delta_rule(q, k, v, beta, log_decay, rows.segment_ids, start.memory)
        gate = nn.sigmoid(self._low_rank(x, "gate", sizes.value, use_bias=config.gate_bias))
        y = self._gated_output(o, gate)
        return y, None if cache is None else ConvolvedMemoryCache(memory, convolution)

    def flops(self, length: int) -> float:
        config, sizes = self.config, self.config.sizes
        features = config.channels + sizes.heads * (sizes.value + 1)
        projections = 2.0 * self.dims.d_model * features + self._low_rank_flops()
        convolution = 2.0 * config.conv_width * config.channels
        return projections + convolution + sizes.flops(length, solves=True)
