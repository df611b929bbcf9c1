"""Comba: a gated delta rule that erases less than it writes, and corrects what it reads (Hu et al.,
2025, arXiv:2506.02475)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, NonNegativeFloat

from jaxformer.model.mixers.convolved_memory import (
    ConvolvedMemory,
    ConvolvedMemoryCache,
    ConvolvedMemoryConfig,
)
from jaxformer.model.mixers.options import KeyDim, NumHeads, ValueExpansion
from jaxformer.model.projections import HeadsOutput
from jaxformer.model.rows import RowInfo
from jaxformer.ops.delta_rule import two_key_delta_rule


class CombaConfig(ConvolvedMemoryConfig):
    kind: Literal["comba"] = "comba"
    num_heads: NumHeads = 6
    head_dim: KeyDim = 256
    value_expansion: ValueExpansion = 2.0
    output_correction: NonNegativeFloat = Field(
        1.0,
        description="the initial value of d, where the query q − d k reads the memory; the authors "
        "found 0.02 better with 340M parameters, and 1 with 1.3B",
    )
    output_gate: bool = Field(
        True,
        description="multiplies every output feature by the sigmoid of a projection of the input",
    )


class Comba(ConvolvedMemory):
    """S_t = (α_t I − b β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ,  o_t = S_tᵀ (q_t − d k_t) / √K,

    with q, k, v = silu(conv(W x)), q and k of length 1, β = σ(W_β x), and the decay of Mamba-2,
    α = exp(−e^{A} softplus(W_α x + a)). The decay does not touch what is erased, so that the
    transition is a scalar plus low rank. b = σ(b̃) and d are parameters of each head; b̃ starts at
    1, d at `output_correction`.  y = W_o (RMSNorm(o) ⊙ σ(W_g x)).
    """

    config: CombaConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: ConvolvedMemoryCache | None = None
    ) -> tuple[jax.Array, ConvolvedMemoryCache | None]:
        config, heads, key = self.config, self.config.num_heads, self.config.head_dim
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache
        q, k, v, convolution = self._queries_keys_values(x, rows.segment_ids, start.convolution)
        log_decay = self._log_decay(x)  # [batch, length, heads]
        beta = nn.sigmoid(self._per_head(x, "beta"))

        def per_head(name: str, first: float) -> jax.Array:
            init = nn.with_logical_partitioning(nn.initializers.constant(first), ("heads",))
            return self.param(name, init, (heads,), jnp.float32)[:, None]

        erase = nn.sigmoid(per_head("feedback", 1.0)) * k
        q -= per_head("correction", config.output_correction) * k * key**-0.5  # q has its 1/√K
        o, memory = two_key_delta_rule(
            q, beta[..., None] * k, v, erase, log_decay[..., None], rows.segment_ids, start.memory
        )
        gate = nn.sigmoid if config.output_gate else None
        y = HeadsOutput(self.dims, gate=gate, eps=config.norm_eps, name="out")(o, x)
        return y, None if cache is None else ConvolvedMemoryCache(memory, convolution)

    def flops(self, length: int) -> float:
        config, sizes = self.config, self.config.sizes
        outputs = 2 if config.output_gate else 1
        features = config.channels + sizes.heads * (outputs * sizes.value + 2)
        convolution = 2.0 * config.conv_width * config.channels
        return 2.0 * self.dims.d_model * features + convolution + sizes.flops(length, solves=True)
