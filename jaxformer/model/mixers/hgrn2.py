"""HGRN2: a linear recurrence whose key is one minus its forget gate (Qin et al., 2024,
arXiv:2404.07904)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, PositiveInt

from jaxformer.model.mixers.matrix_memory import (
    MatrixMemory,
    MatrixMemoryConfig,
    MemorySizes,
    heads_divide,
)
from jaxformer.model.mixers.options import NumHeads
from jaxformer.model.norms import Norm, NormConfig
from jaxformer.model.positions import PositionsUnion
from jaxformer.model.projections import Projection, project_heads
from jaxformer.model.rows import RowInfo
from jaxformer.ops.decay import State
from jaxformer.ops.decayed_outer_product import decayed_outer_product


class HGRN2Config(MatrixMemoryConfig):
    """Inputs have d_model / num_heads features per head."""

    kind: Literal["hgrn2"] = "hgrn2"
    num_heads: NumHeads = 8
    state_expansion: PositiveInt = Field(
        128, description="states per input feature; the paper takes d_model / num_heads"
    )
    lower_bound: float = Field(0.0, ge=0, lt=1, description="the least value of forget gates")

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        heads_divide("d_model", d_model, self.num_heads)

    def sizes(self, d_model: int) -> MemorySizes:
        return MemorySizes(self.num_heads, self.state_expansion, d_model // self.num_heads)


class HGRN2(MatrixMemory):
    """S_t = Diag(f_t) S_{t−1} + (1 − f_t) i_tᵀ,  o_t = S_tᵀ silu(W_q x_t),  y = W_o RMSNorm(o),

    with f = β + (1 − β) σ(W_f x) and i = W_i x; the RMSNorm is over all heads.
    """

    config: HGRN2Config

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: State | None = None
    ) -> tuple[jax.Array, State | None]:
        sizes, bound = self._sizes, self.config.lower_bound
        wide = sizes.wide(x.dtype)
        q = nn.silu(project_heads(x, self.dims, "query", sizes.heads, sizes.key))
        forget = project_heads(x, self.dims, "forget", sizes.heads, sizes.key).astype(wide)
        i = project_heads(x, self.dims, "input", sizes.heads, sizes.value)
        k = (1 - bound) * nn.sigmoid(-forget)  # 1 − f
        log_decay = jnp.log1p(-k) if bound else nn.log_sigmoid(forget)
        state = sizes.empty(x.shape[0], x.dtype) if cache is None else cache
        o, state = decayed_outer_product(q, k, i, log_decay, rows.segment_ids, state)
        inner = sizes.heads * sizes.value
        normal = Norm(NormConfig(), axis_name="d_hidden", name="norm")(
            o.reshape(*x.shape[:2], inner)
        )
        y = Projection(
            (self.dims.d_model,),
            ("d_hidden", "d_model"),
            self.dims.init.output_matrix(inner, self.dims.num_layers),
            name="output",
        )(normal)
        return y, None if cache is None else state

    def flops(self, length: int) -> float:
        sizes = self._sizes
        projections = 2.0 * self.dims.d_model * sizes.heads * (2 * sizes.key + 2 * sizes.value)
        return projections + sizes.flops(length)
