"""Gated DeltaNet: the delta rule with one decay per head (Yang et al., 2024, arXiv:2412.06464)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, PositiveInt

from jaxformer.model.mixers.convolved_memory import (
    ConvolvedMemory,
    ConvolvedMemoryCache,
    ConvolvedMemoryConfig,
)
from jaxformer.model.mixers.options import KeyDim, NegativeEigenvalues, NumHeads, ValueExpansion
from jaxformer.model.positions import PositionsUnion
from jaxformer.model.projections import HeadsOutput
from jaxformer.model.rows import RowInfo
from jaxformer.ops.delta_rule import delta_rule


class GatedDeltaConfig(ConvolvedMemoryConfig):
    kind: Literal["gated_delta"] = "gated_delta"
    num_heads: NumHeads = 6
    num_key_heads: PositiveInt | None = Field(
        None,
        description="heads of queries and keys, each shared by num_heads / num_key_heads heads; "
        "`num_heads` if null",
    )
    head_dim: KeyDim = 256
    value_expansion: ValueExpansion = 2.0
    negative_eigenvalues: NegativeEigenvalues = False

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        if self.num_heads % self.key_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not divisible by num_key_heads {self.key_heads}; "
                f"allowed: a divisor of num_heads"
            )

    @property
    def key_heads(self) -> int:
        return self.num_key_heads or self.num_heads

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        heads, key, value = self.sizes
        keys = (self.key_heads, key)
        return {"query": keys, "key": keys, "value": (heads, value)}


class GatedDelta(ConvolvedMemory):
    """S_t = α_t (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ,  o_t = S_tᵀ q_t / √K,

    with q, k, v = silu(conv(W x)), q and k of length 1, β = σ(W_β x), and the decay of Mamba-2,
    α = exp(−e^{A} softplus(W_α x + b)) (equation 10);  y = W_o (RMSNorm(o) ⊙ silu(W_g x)).
    Several heads share q and k where `num_key_heads` says so, as in Qwen3-Next.
    """

    config: GatedDeltaConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: ConvolvedMemoryCache | None = None
    ) -> tuple[jax.Array, ConvolvedMemoryCache | None]:
        config = self.config
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache
        q, k, v, convolution = self._queries_keys_values(x, rows.segment_ids, start.convolution)

        share = config.num_heads // config.key_heads
        q, k = jnp.repeat(q, share, axis=2), jnp.repeat(k, share, axis=2)
        log_decay = self._log_decay(x)
        beta = nn.sigmoid(self._per_head(x, "beta")) * (2.0 if config.negative_eigenvalues else 1.0)

        o, memory = delta_rule(q, k, v, beta, log_decay[..., None], rows.segment_ids, start.memory)
        y = HeadsOutput(self.dims, gate=nn.silu, eps=config.norm_eps, name="out")(o, x)
        return y, None if cache is None else ConvolvedMemoryCache(memory, convolution)

    def flops(self, length: int) -> float:
        sizes = self.config.sizes
        features = self.config.channels + sizes.heads * (2 * sizes.value + 2)
        convolution = 2.0 * self.config.conv_width * self.config.channels
        return 2.0 * self.dims.d_model * features + convolution + sizes.flops(length, solves=True)
