"""Retention: linear attention, one fixed decay per head (Sun et al., 2023, arXiv:2307.08621)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, PositiveFloat

from jaxformer.model.mixers.matrix_memory import (
    MatrixMemory,
    MatrixMemoryConfig,
    MemorySizes,
    heads_divide,
)
from jaxformer.model.mixers.options import NumHeads
from jaxformer.model.positions import PositionsUnion, RoPEConfig, rope, rope_rotation
from jaxformer.model.projections import HeadsOutput, project_heads
from jaxformer.model.rows import RowInfo
from jaxformer.ops.decay import State
from jaxformer.ops.decayed_outer_product import decayed_outer_product


class RetentionConfig(MatrixMemoryConfig):
    kind: Literal["retention"] = "retention"
    num_heads: NumHeads = 8
    value_expansion: PositiveFloat = Field(
        2.0, description="features of all values, as a multiple of d_model; keys have d_model"
    )

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        heads_divide("d_model", d_model, self.num_heads)
        heads_divide("value_expansion × d_model", self.value_expansion * d_model, self.num_heads)
        if isinstance(positions, RoPEConfig):
            positions.rotated_size(d_model // self.num_heads)

    def uses(self, positions: PositionsUnion) -> bool:
        return isinstance(positions, RoPEConfig)

    def sizes(self, d_model: int) -> MemorySizes:
        value = round(self.value_expansion * d_model) // self.num_heads
        return MemorySizes(self.num_heads, d_model // self.num_heads, value)


class Retention(MatrixMemory):
    """S_t = γ_h S_{t−1} + k_t v_tᵀ,  o_t = S_tᵀ q_t / √K,  y = W_o (RMSNorm(o) ⊙ silu(W_g x)),

    with γ_h = 1 − 2^{−5−h}, and q and k rotated by their positions (equations 5 to 8).
    """

    config: RetentionConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: State | None = None
    ) -> tuple[jax.Array, State | None]:
        sizes = self._sizes
        q = project_heads(x, self.dims, "query", sizes.heads, sizes.key) * sizes.key**-0.5
        k = project_heads(x, self.dims, "key", sizes.heads, sizes.key)
        v = project_heads(x, self.dims, "value", sizes.heads, sizes.value)
        if isinstance(self.scheme, RoPEConfig):
            rotation = rope_rotation(rows, self.scheme, sizes.key, x.dtype)
            q, k = rope(q, rotation), rope(k, rotation)
        decay = jnp.log1p(-(2.0 ** (-5 - jnp.arange(sizes.heads, dtype=sizes.wide(x.dtype)))))
        log_decay = jnp.broadcast_to(decay[:, None], (*k.shape[:3], 1))
        state = sizes.empty(x.shape[0], x.dtype) if cache is None else cache
        o, state = decayed_outer_product(q, k, v, log_decay, rows.segment_ids, state)
        y = HeadsOutput(self.dims, gate=nn.silu, scale=False, name="out")(o, x)
        return y, None if cache is None else state

    def flops(self, length: int) -> float:
        sizes = self._sizes
        projections = 2.0 * self.dims.d_model * sizes.heads * (2 * sizes.key + 3 * sizes.value)
        return projections + sizes.flops(length)
