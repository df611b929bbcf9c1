"""Gated linear attention: one decay per key channel (Yang et al., 2023, arXiv:2312.06635)."""

from typing import Literal

import flax.linen as nn
import jax
from pydantic import Field, PositiveFloat, PositiveInt

from jaxformer.model.mixers.matrix_memory import (
    MatrixMemory,
    MatrixMemoryConfig,
    MemorySizes,
    heads_divide,
)
from jaxformer.model.mixers.options import KeyShare, NumHeads, ValueShare
from jaxformer.model.positions import PositionsUnion
from jaxformer.model.projections import HeadsOutput, Projection, project_heads
from jaxformer.model.rows import RowInfo
from jaxformer.ops.decay import State
from jaxformer.ops.decayed_outer_product import decayed_outer_product


class GLAConfig(MatrixMemoryConfig):
    kind: Literal["gla"] = "gla"
    num_heads: NumHeads = 4
    key_expansion: KeyShare = 0.5
    value_expansion: ValueShare = 1.0
    gate_rank: PositiveInt = Field(16, description="the rank of the projection to the gate")
    gate_temperature: PositiveFloat = Field(16.0, description="divides the logarithm of the gate")

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        heads_divide("key_expansion × d_model", self.key_expansion * d_model, self.num_heads)
        heads_divide("value_expansion × d_model", self.value_expansion * d_model, self.num_heads)

    def sizes(self, d_model: int) -> MemorySizes:
        key, value = (round(f * d_model) for f in (self.key_expansion, self.value_expansion))
        return MemorySizes(self.num_heads, key // self.num_heads, value // self.num_heads)


class GLA(MatrixMemory):
    """S_t = Diag(α_t) S_{t−1} + k_t v_tᵀ,  o_t = S_tᵀ q_t / √K,  α_t = σ(W₂ W₁ x_t + b)^{1/τ},

    y = W_o (RMSNorm(o) ⊙ silu(W_g x))  (equations 3 and 4, section 4.4).
    """

    config: GLAConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: State | None = None
    ) -> tuple[jax.Array, State | None]:
        config, sizes, init = self.config, self._sizes, self.dims.init
        q = project_heads(x, self.dims, "query", sizes.heads, sizes.key) * sizes.key**-0.5
        k = project_heads(x, self.dims, "key", sizes.heads, sizes.key)
        v = project_heads(x, self.dims, "value", sizes.heads, sizes.value)
        matrix = init.matrix(self.dims.d_model)
        low = Projection((config.gate_rank,), ("d_model", "rank"), matrix, name="gate_in")(x)
        gate = Projection(
            (sizes.heads, sizes.key),
            ("rank", "heads", "head_dim"),
            init.matrix(config.gate_rank),
            use_bias=True,
            name="gate_out",
        )(low)
        log_decay = nn.log_sigmoid(gate.astype(sizes.wide(x.dtype))) / config.gate_temperature
        state = sizes.empty(x.shape[0], x.dtype) if cache is None else cache
        o, state = decayed_outer_product(q, k, v, log_decay, rows.segment_ids, state)
        y = HeadsOutput(self.dims, gate=nn.silu, name="out")(o, x)
        return y, None if cache is None else state

    def flops(self, length: int) -> float:
        sizes, rank = self._sizes, self.config.gate_rank
        features = sizes.heads * (2 * sizes.key + 3 * sizes.value) + rank
        gate = 2.0 * rank * sizes.heads * sizes.key
        return 2.0 * self.dims.d_model * features + gate + sizes.flops(length)
