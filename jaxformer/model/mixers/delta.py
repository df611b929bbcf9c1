"""DeltaNet: a memory that the delta rule updates (Yang et al., 2024, arXiv:2406.06484)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.model.mixers.convolved_memory import (
    ConvolvedMemory,
    ConvolvedMemoryCache,
    ConvolvedMemoryConfig,
)
from jaxformer.model.mixers.options import (
    KeyDim,
    NegativeEigenvalues,
    NumHeads,
    OutputGate,
    ValueExpansion,
)
from jaxformer.model.projections import HeadsOutput
from jaxformer.model.rows import RowInfo
from jaxformer.ops.delta_rule import delta_rule


class DeltaConfig(ConvolvedMemoryConfig):
    kind: Literal["delta"] = "delta"
    num_heads: NumHeads = 8
    head_dim: KeyDim = 128
    value_expansion: ValueExpansion = 1.0
    negative_eigenvalues: NegativeEigenvalues = False
    output_gate: OutputGate = False


class Delta(ConvolvedMemory):
    """S_t = (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ,  o_t = S_tᵀ q_t / √K,

    with q, k, v = silu(conv(W x)), q and k of length 1, and β = σ(W_β x);
    y = W_o RMSNorm(o), with an output gate W_o (RMSNorm(o) ⊙ silu(W_g x)).
    """

    config: DeltaConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: ConvolvedMemoryCache | None = None
    ) -> tuple[jax.Array, ConvolvedMemoryCache | None]:
        config = self.config
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache
        q, k, v, convolution = self._queries_keys_values(x, rows.segment_ids, start.convolution)
        beta = nn.sigmoid(self._per_head(x, "beta"))
        if config.negative_eigenvalues:
            beta *= 2.0
        no_decay = jnp.zeros_like(beta)[..., None]
        o, memory = delta_rule(q, k, v, beta, no_decay, rows.segment_ids, start.memory)
        gate = nn.silu if config.output_gate else None
        y = HeadsOutput(self.dims, gate=gate, eps=config.norm_eps, name="out")(o, x)
        return y, None if cache is None else ConvolvedMemoryCache(memory, convolution)

    def flops(self, length: int) -> float:
        config, sizes = self.config, self.config.sizes
        outputs = 2 if config.output_gate else 1
        features = self.config.channels + sizes.heads * (outputs * sizes.value + 1)
        convolution = 2.0 * config.conv_width * self.config.channels
        return 2.0 * self.dims.d_model * features + convolution + sizes.flops(length, solves=True)
