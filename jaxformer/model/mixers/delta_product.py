"""DeltaProduct: several delta-rule steps per token (Siems et al., 2025, arXiv:2502.10297)."""

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
from jaxformer.model.mixers.options import (
    KeyDim,
    NegativeEigenvalues,
    NumHeads,
    OutputGate,
    ValueExpansion,
)
from jaxformer.model.projections import HeadsOutput, Projection
from jaxformer.model.rows import RowInfo
from jaxformer.ops.delta_rule import delta_rule


class DeltaProductConfig(ConvolvedMemoryConfig):
    """With `forget_gate`, this is Gated DeltaProduct."""

    kind: Literal["delta_product"] = "delta_product"
    num_heads: NumHeads = 6
    head_dim: KeyDim = 256
    value_expansion: ValueExpansion = 2.0
    num_householder: PositiveInt = Field(
        2, description="steps per token, each with its own keys, values and β"
    )
    negative_eigenvalues: NegativeEigenvalues = True
    forget_gate: bool = Field(
        False, description="applies the decay of Gated DeltaNet before a token's first step"
    )
    output_gate: OutputGate = True

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        heads, key, value = self.sizes
        steps = self.num_householder
        return {"query": (heads, key), "key": (steps, heads, key), "value": (steps, heads, value)}


class DeltaProduct(ConvolvedMemory):
    """S_{t,j} = (I − β_{t,j} k_{t,j} k_{t,j}ᵀ) S_{t,j−1} + β_{t,j} k_{t,j} v_{t,j}ᵀ, j = 1 … n_h,

    from S_{t,0} = α_t S_{t−1} to S_t = S_{t,n_h}, and o_t = S_tᵀ q_t / √K, with q, k, v =
    silu(conv(W x)), q and k of length 1, β = σ(W_β x), and α = 1, or with a forget gate
    α = exp(−e^{A} softplus(W_α x + b));  y = W_o (RMSNorm(o) ⊙ silu(W_g x)).
    """

    config: DeltaProductConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: ConvolvedMemoryCache | None = None
    ) -> tuple[jax.Array, ConvolvedMemoryCache | None]:
        config, sizes, init = self.config, self.config.sizes, self.dims.init
        (batch, length), heads, steps = x.shape[:2], sizes.heads, config.num_householder
        wide = sizes.wide(x.dtype)
        start = self.init_cache(batch, length, x.dtype) if cache is None else cache
        q, k, v, convolution = self._queries_keys_values(x, rows.segment_ids, start.convolution)
        matrix = init.matrix(self.dims.d_model)
        beta = Projection((steps, heads), ("d_model", "steps", "heads"), matrix, name="beta")(x)
        beta = nn.sigmoid(beta.astype(wide))
        if config.negative_eigenvalues:
            beta *= 2.0
        log_decay = jnp.zeros_like(beta)
        if config.forget_gate:
            others = [(0, 0), (0, 0), (0, steps - 1), (0, 0)]
            log_decay = jnp.pad(self._log_decay(x)[:, :, None], others)

        def by_step(a: jax.Array) -> jax.Array:
            """[batch, length, steps, …] → [batch, length · steps, …]."""
            return a.reshape(batch, length * steps, *a.shape[3:])

        o, memory = delta_rule(
            jnp.repeat(q, steps, axis=1),
            by_step(k),
            by_step(v),
            by_step(beta),
            by_step(log_decay)[..., None],
            jnp.repeat(rows.segment_ids, steps, axis=1),
            start.memory,
        )
        o = o.reshape(batch, length, steps, heads, sizes.value)[:, :, -1]
        gate = nn.silu if config.output_gate else None
        y = HeadsOutput(self.dims, gate=gate, eps=config.norm_eps, name="out")(o, x)
        return y, None if cache is None else ConvolvedMemoryCache(memory, convolution)

    def flops(self, length: int) -> float:
        config, sizes, steps = self.config, self.config.sizes, self.config.num_householder
        outputs = 2 if config.output_gate else 1
        gates = steps + (1 if config.forget_gate else 0)
        features = self.config.channels + sizes.heads * (outputs * sizes.value + gates)
        convolution = 2.0 * config.conv_width * self.config.channels
        memory = steps * sizes.flops(length * steps, solves=True)
        return 2.0 * self.dims.d_model * features + convolution + memory
