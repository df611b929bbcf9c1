"""Gated DeltaNet-2: a delta rule whose gates of erasing and of writing are vectors (Hatamizadeh et
al., 2026, arXiv:2605.22791)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, PositiveInt

from jaxformer.model.mixers.channel_decay import ChannelDecay
from jaxformer.model.mixers.convolved_memory import ConvolvedMemoryCache, ConvolvedMemoryConfig
from jaxformer.model.mixers.options import NumHeads, ValueExpansion
from jaxformer.model.projections import project_heads
from jaxformer.model.rows import RowInfo
from jaxformer.ops.delta_rule import two_key_delta_rule


class GatedDelta2Config(ConvolvedMemoryConfig):
    kind: Literal["gated_delta2"] = "gated_delta2"
    num_heads: NumHeads = 16
    head_dim: PositiveInt = Field(
        128,
        description="features of a query and a key, per head, and the rank of the projections "
        "to the decay and the output gate",
    )
    value_expansion: ValueExpansion = 1.0
    negative_eigenvalues: bool = Field(
        False, description="lets the erase gate range over [0, 2] instead of [0, 1]"
    )


class GatedDelta2(ChannelDecay):
    """S_t = (I − k_t (b_t ⊙ k_t)ᵀ) Diag(α_t) S_{t−1} + k_t (w_t ⊙ v_t)ᵀ,  o_t = S_tᵀ q_t / √K,

    with q, k, v = silu(conv(W x)), q and k of length 1, an erase gate b = σ(W_b x) per key channel,
    a write gate w = σ(W_w x) per value channel, and the decay of Kimi Delta Attention,
    α = exp(−e^{A} softplus(W₂ W₁ x + a));  y = W_o (RMSNorm(o) ⊙ silu(U₂ U₁ x + c)).
    If b and w are the same number in all channels, the memory is that of Kimi Delta Attention.
    """

    config: GatedDelta2Config

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: ConvolvedMemoryCache | None = None
    ) -> tuple[jax.Array, ConvolvedMemoryCache | None]:
        heads, key, value = sizes = self.config.sizes
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache
        q, k, v, convolution = self._queries_keys_values(x, rows.segment_ids, start.convolution)
        log_decay = self._channel_log_decay(x)  # [batch, length, heads, head_dim]

        def gate(name: str, features: int) -> jax.Array:
            logits = project_heads(x, self.dims, name, heads, features)
            return nn.sigmoid(logits.astype(sizes.wide(x.dtype)))

        erase = gate("erase", key) * (2.0 if self.config.negative_eigenvalues else 1.0)
        written = (gate("write", value) * v).astype(v.dtype)
        o, memory = two_key_delta_rule(
            q,
            k,
            written,
            jnp.exp(log_decay) * erase * k,
            log_decay,
            rows.segment_ids,
            start.memory,
        )
        y = self._gated_output(o, nn.silu(self._low_rank(x, "gate", value, use_bias=True)))
        return y, None if cache is None else ConvolvedMemoryCache(memory, convolution)

    def flops(self, length: int) -> float:
        config, sizes = self.config, self.config.sizes
        features = config.channels + sizes.heads * (sizes.key + 2 * sizes.value)
        projections = 2.0 * self.dims.d_model * features + self._low_rank_flops()
        convolution = 2.0 * config.conv_width * config.channels
        return projections + convolution + sizes.flops(length, solves=True)
