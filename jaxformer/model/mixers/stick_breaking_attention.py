"""Stick-breaking attention: the nearest keys take their share first, in place of a softmax (Tan et
al., 2024, arXiv:2410.17980)."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from pydantic import Field

from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.mixers.options import (
    HeadDim,
    LogitFactor,
    NumHeads,
    NumKVHeads,
    check_heads,
)
from jaxformer.model.mixers.token_cache import TokenCache, token_cache_bytes
from jaxformer.model.positions import PositionsUnion
from jaxformer.model.projections import merge_heads, project_heads
from jaxformer.model.rows import RowInfo
from jaxformer.ops.attention import Visibility
from jaxformer.ops.stick_breaking import row_stick_breaking, stick_breaking


class StickBreakingAttentionConfig(MixerConfig):
    """It needs no positions: of equal keys, the nearer takes more."""

    kind: Literal["stick_breaking_attention"] = "stick_breaking_attention"
    num_heads: NumHeads = 8
    num_kv_heads: NumKVHeads = None
    head_dim: HeadDim = None
    remainder: bool = Field(
        False, description="gives what all keys have left of the stick to the token's own value"
    )
    scale: LogitFactor = None

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        check_heads(d_model, self.num_heads, self.kv_heads, self.head_dim)

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    def head_size(self, d_model: int) -> int:
        return self.head_dim or d_model // self.num_heads


class StickBreakingAttention(Mixer):
    """y_i = W_o concat_h Σ_{j<i} A_ij v_j,  A_ij = β_ij Π_{j<l<i} (1 − β_il),

    β_ij = σ(q_i · k_j / √head_dim): a token does not see itself, and the first of a document reads
    nothing. With `remainder`, Π_{j<i} (1 − β_ij) v_i is added.
    """

    form = "pairs"
    rewinds = True

    config: StickBreakingAttentionConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: TokenCache | None = None
    ) -> tuple[jax.Array, TokenCache | None]:
        config, dims, head_dim = self.config, self.dims, self._head_dim
        q = project_heads(x, dims, "query", config.num_heads, head_dim)
        k = project_heads(x, dims, "key", config.kv_heads, head_dim, axis="kv_heads")
        v = project_heads(x, dims, "value", config.kv_heads, head_dim, axis="kv_heads")
        scale = config.scale or 1 / math.sqrt(head_dim)
        if cache is None:
            y, left = row_stick_breaking(q, k, v, rows.segment_ids, scale=scale)
        else:
            cache, new = cache.appended({"k": k, "v": v}, rows)
            keys, values = cache.kept["k"], cache.kept["v"]
            y, left = stick_breaking(q, keys, values, new, cache.tokens, scale=scale)
        if config.remainder:
            own = jnp.repeat(v, config.num_heads // config.kv_heads, axis=2)
            y += left.astype(v.dtype)[..., None] * own
        return merge_heads(y, dims), cache

    @property
    def _head_dim(self) -> int:
        return self.config.head_size(self.dims.d_model)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> TokenCache:
        shape = (batch, max_length, self.config.kv_heads, self._head_dim)
        return TokenCache.of({"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)})

    def rewind(self, cache: TokenCache, counts: jax.Array) -> TokenCache:
        return cache.without(counts)

    def flops(self, length: int) -> float:
        config, features = self.config, self._head_dim
        projected = (2 * config.num_heads + 2 * config.kv_heads) * features
        keys = Visibility().keys(length) - 1  # a token does not see its own
        return 2.0 * self.dims.d_model * projected + 4.0 * config.num_heads * features * keys

    def cache_bytes(self, length: int) -> int:
        features = 2 * self.config.kv_heads * self._head_dim
        return token_cache_bytes(length, features * jnp.dtype(self.dims.dtype).itemsize)
