"""Linear attention: a product of features replaces the softmax.

Features elu + 1: Katharopoulos et al., 2020, arXiv:2006.16236. Taylor's (Based): Arora et al.,
2024, arXiv:2402.18668.
"""

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
from jaxformer.model.positions import PositionsUnion
from jaxformer.model.projections import Projection, project_heads
from jaxformer.model.rows import RowInfo
from jaxformer.ops.decay import State
from jaxformer.ops.decayed_outer_product import decayed_outer_product

EPSILON = 1e-6
TAYLOR_KEY_DIM = 16


class LinearAttentionConfig(MatrixMemoryConfig):
    """With `taylor`, a key has 1 + d + d² features in the memory, where d is `key_dim`."""

    kind: Literal["linear_attention"] = "linear_attention"
    num_heads: NumHeads = 8
    feature_map: Literal["elu", "taylor"] = Field(
        "elu",
        description="`elu`: φ(x) = elu(x) + 1; `taylor`: φ(q)·φ(k) = 1 + s + s²/2 with s = "
        "q·k / √key_dim",
    )
    key_dim: PositiveInt | None = Field(
        None,
        description="features of a key, per head; d_model / num_heads for elu and 16 for "
        "taylor if null",
    )

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        heads_divide("d_model", d_model, self.num_heads)

    def projected(self, d_model: int) -> MemorySizes:
        """Features of queries and keys, and of values, before the feature map."""
        value = d_model // self.num_heads
        key = self.key_dim or (value if self.feature_map == "elu" else TAYLOR_KEY_DIM)
        return MemorySizes(self.num_heads, key, value)

    def sizes(self, d_model: int) -> MemorySizes:
        """The memory's sizes: values get a last feature, 1, which sums the features of keys."""
        heads, key, value = self.projected(d_model)
        return MemorySizes(heads, key if self.feature_map == "elu" else 1 + key + key**2, value + 1)


class LinearAttention(MatrixMemory):
    """S_t = S_{t−1} + φ(k_t) v_tᵀ,  z_t = z_{t−1} + φ(k_t),  o_t = S_tᵀ φ(q_t) / z_tᵀ φ(q_t),

    y = W_o o  (arXiv:2006.16236, equations 16 to 20).
    """

    config: LinearAttentionConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: State | None = None
    ) -> tuple[jax.Array, State | None]:
        heads, key, value = self.config.projected(self.dims.d_model)
        wide = self._sizes.wide(x.dtype)
        q = project_heads(x, self.dims, "query", heads, key).astype(wide)
        k = project_heads(x, self.dims, "key", heads, key).astype(wide)
        v = project_heads(x, self.dims, "value", heads, value).astype(wide)
        features = {"elu": _elu_features, "taylor": _taylor_features}[self.config.feature_map]
        ones = jnp.ones((*x.shape[:2], heads, 1), wide)
        state = self._sizes.empty(x.shape[0], x.dtype) if cache is None else cache
        sums, state = decayed_outer_product(
            features(q),
            features(k),
            jnp.concatenate([v, ones], axis=-1),
            jnp.zeros_like(ones),
            rows.segment_ids,
            state,
        )
        o = sums[..., :-1] / (sums[..., -1:] + EPSILON)
        y = Projection(
            (self.dims.d_model,),
            ("heads", "head_dim", "d_model"),
            self.dims.init.output_matrix(heads * value, self.dims.num_layers),
            name="output",
        )(o.astype(x.dtype))
        return y, None if cache is None else state

    def flops(self, length: int) -> float:
        heads, key, value = self.config.projected(self.dims.d_model)
        projections = 2.0 * self.dims.d_model * heads * (2 * key + 2 * value)
        return projections + self._sizes.flops(length)


def _elu_features(x: jax.Array) -> jax.Array:
    return nn.elu(x) + 1


def _taylor_features(x: jax.Array) -> jax.Array:
    """(1, x / d^{1/4}, vec(x xᵀ) / √(2d)): [..., d] → [..., 1 + d + d²]."""
    d = x.shape[-1]
    squares = (x[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], d * d)
    return jnp.concatenate([jnp.ones_like(x[..., :1]), x * d**-0.25, squares * (2 * d) ** -0.5], -1)
