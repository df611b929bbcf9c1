"""Kimi Delta Attention: the delta rule with one decay per key channel (arXiv:2510.26692)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, PositiveInt

from jaxformer.model.decay_init import a_log_init, dt_bias_init
from jaxformer.model.mixers.convolved_memory import (
    ConvolvedMemory,
    ConvolvedMemoryCache,
    ConvolvedMemoryConfig,
)
from jaxformer.model.mixers.options import NumHeads, ValueExpansion
from jaxformer.model.norms import Norm, NormConfig
from jaxformer.model.projections import Projection
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


class KDA(ConvolvedMemory):
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
        config, sizes, init = self.config, self.config.sizes, self.dims.init
        heads, wide = sizes.heads, sizes.wide(x.dtype)
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache
        q, k, v, convolution = self._queries_keys_values(x, rows.segment_ids, start.convolution)

        names = nn.with_logical_partitioning
        a_log = self.param("a_log", names(a_log_init(1.0, 16.0), ("heads",)), (heads,), jnp.float32)
        dt_bias = self.param(
            "dt_bias", names(dt_bias_init, ("heads", "head_dim")), (heads, sizes.key), jnp.float32
        )
        step = nn.softplus(self._low_rank(x, "decay", sizes.key).astype(wide) + dt_bias)
        log_decay = -jnp.exp(a_log)[:, None] * step
        beta = nn.sigmoid(self._per_head(x, "beta"))

        o, memory = delta_rule(q, k, v, beta, log_decay, rows.segment_ids, start.memory)
        gate = nn.sigmoid(self._low_rank(x, "gate", sizes.value, use_bias=config.gate_bias))
        norm = Norm(NormConfig(eps=config.norm_eps), axis_name="head_dim", name="norm")
        y = Projection(
            (self.dims.d_model,),
            ("heads", "head_dim", "d_model"),
            init.output_matrix(heads * sizes.value, self.dims.num_layers),
            name="output",
        )(norm(o) * gate)
        return y, None if cache is None else ConvolvedMemoryCache(memory, convolution)

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

    def flops(self, length: int) -> float:
        config, sizes = self.config, self.config.sizes
        features = self.config.channels + sizes.heads * (sizes.value + 1) + 2 * config.head_dim
        low_rank = 2.0 * config.head_dim * sizes.heads * (sizes.key + sizes.value)
        convolution = 2.0 * config.conv_width * self.config.channels
        projections = 2.0 * self.dims.d_model * features + low_rank + convolution
        return projections + sizes.flops(length, solves=True)
