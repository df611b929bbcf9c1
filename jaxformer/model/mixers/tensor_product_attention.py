"""Tensor product attention: queries, keys and values are sums of products of two factors (Zhang et
al., 2025, arXiv:2501.06425)."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from pydantic import Field, PositiveInt

from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.mixers.options import HeadDim, LogitFactor, NumHeads, check_heads
from jaxformer.model.mixers.token_cache import TokenCache, token_cache_bytes
from jaxformer.model.positions import PositionsUnion, RoPEConfig, rope, rope_rotation
from jaxformer.model.projections import Projection, merge_heads
from jaxformer.model.rows import RowInfo
from jaxformer.ops.attention import Visibility, attend
from jaxformer.ops.kernels.choice import choose
from jaxformer.ops.row_attention import prefill_attention, row_attention
from jaxformer.parallel.rules import mesh_axes


class TensorProductAttentionConfig(MixerConfig):
    """The cache holds the factors: (key_rank + value_rank) · (num_heads + head_dim) numbers a
    token. The factors' matrices start as the paper has them, Glorot-uniform, whatever
    `model.init.std` says."""

    kind: Literal["tensor_product_attention"] = "tensor_product_attention"
    num_heads: NumHeads = 8
    head_dim: HeadDim = None
    query_rank: PositiveInt = Field(6, description="how many products a query is the mean of")
    key_rank: PositiveInt = Field(2, description="how many products a key is the mean of")
    value_rank: PositiveInt = Field(2, description="how many products a value is the mean of")
    scale: LogitFactor = None

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        check_heads(d_model, self.num_heads, self.num_heads, self.head_dim)
        if isinstance(positions, RoPEConfig):
            positions.rotated_size(self.head_size(d_model))

    @property
    def sees_any_order(self) -> bool:
        return True

    @property
    def sees_both_ways(self) -> bool:
        return True

    def uses(self, positions: PositionsUnion) -> bool:
        return isinstance(positions, RoPEConfig)

    @property
    def ranks(self) -> dict[str, int]:
        return {"query": self.query_rank, "key": self.key_rank, "value": self.value_rank}

    def head_size(self, d_model: int) -> int:
        return self.head_dim or d_model // self.num_heads


class TensorProductAttention(Mixer):
    """y = W_o concat_h softmax(q_h · k_h / √head_dim) v_h,

    q = (1/R) Σ_r a_r ⊗ rope(b_r), with R factors a_r = W_{A,r} x over the heads and b_r = W_{B,r} x
    over the features of a head; k likewise, and v without the rotation, each from factors of its
    own.
    """

    form = "pairs"
    kernel = "splash (TPU), cuDNN (NVIDIA)"
    rewinds = True

    config: TensorProductAttentionConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: TokenCache | None = None
    ) -> tuple[jax.Array, TokenCache | None]:
        of_heads, of_features = {}, {}
        for name, rank in self.config.ranks.items():
            of_heads[name], of_features[name] = self._factors(x, name, rank)
        if isinstance(self.scheme, RoPEConfig):
            rotation = rope_rotation(rows, self.scheme, self._head_dim, x.dtype)
            of_features |= {name: rope(of_features[name], rotation) for name in ("query", "key")}
        q = _products(of_heads["query"], of_features["query"])

        # Initialization runs on a row too short for a kernel.
        kernel = "xla" if self.is_initializing() else self.dims.kernels.attention
        of_rows = {"kernel": kernel, "place": mesh_axes("batch", "heads"), **self._options}
        if cache is None:
            k, v = (_products(of_heads[name], of_features[name]) for name in ("key", "value"))
            y = row_attention(q, k, v, *rows[:3], **of_rows)
        else:
            is_empty, length = jnp.all(cache.length == 0), x.shape[1]
            new = {f"{name}_heads": of_heads[name] for name in ("key", "value")}
            new |= {f"{name}_features": of_features[name] for name in ("key", "value")}
            cache, tokens = cache.appended(new, rows)
            kept = {name: factors.astype(x.dtype) for name, factors in cache.kept.items()}
            k, v = (
                _products(kept[f"{name}_heads"], kept[f"{name}_features"])
                for name in ("key", "value")
            )
            queries = (tokens._replace(given=rows.order), cache.tokens)
            y = prefill_attention(
                is_empty,
                lambda: attend(q, k, v, *queries, **self._options),
                *(q, k[:, :length], v[:, :length], *rows[:3]),
                **of_rows,
            )
        return merge_heads(y, self.dims), cache

    @property
    def _head_dim(self) -> int:
        return self.config.head_size(self.dims.d_model)

    def _factors(self, x: jax.Array, name: str, rank: int) -> tuple[jax.Array, jax.Array]:
        """Over the heads, [batch, length, heads, rank], and over the features of a head, [batch,
        length, rank, head_dim]."""
        heads, head_dim = self.config.num_heads, self._head_dim
        start = nn.initializers.glorot_uniform()
        of_heads = Projection((heads * rank,), ("d_model", "heads"), start, name=f"{name}_heads")
        of_features = Projection(
            (rank * head_dim,), ("d_model", "rank"), start, name=f"{name}_features"
        )
        return (
            of_heads(x).reshape(*x.shape[:2], heads, rank),
            of_features(x).reshape(*x.shape[:2], rank, head_dim),
        )

    @property
    def _visibility(self) -> Visibility:
        dims = self.dims
        return Visibility(is_causal=dims.is_causal, is_whole=dims.grid is not None)

    @property
    def _options(self) -> dict:
        scale = self.config.scale or 1 / math.sqrt(self._head_dim)
        return {"visibility": self._visibility, "scale": scale}

    def kernels(self, length: int) -> tuple[str, ...]:
        shape = (1, length, self.config.num_heads, self._head_dim)
        q = jax.ShapeDtypeStruct(shape, self.dims.dtype)
        chosen = choose(self.dims.kernels.attention, q, q, **self._options)
        return (f"tensor_product_attention {chosen}",)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> TokenCache:
        if not self.dims.is_causal:
            self.refuse_cache()
        kept = {}
        for name, rank in (("key", self.config.key_rank), ("value", self.config.value_rank)):
            of_heads = (batch, max_length, self.config.num_heads, rank)
            kept[f"{name}_heads"] = jnp.zeros(of_heads, dtype)
            kept[f"{name}_features"] = jnp.zeros((batch, max_length, rank, self._head_dim), dtype)
        return TokenCache.of(kept)

    def rewind(self, cache: TokenCache, counts: jax.Array) -> TokenCache:
        return cache.without(counts)

    def flops(self, length: int) -> float:
        """A token's products are counted once; decoding makes those of all keys at every step."""
        heads, head_dim, d_model = self.config.num_heads, self._head_dim, self.dims.d_model
        products = sum(self.config.ranks.values())
        factors = d_model * products * (heads + head_dim)
        features = heads * head_dim
        pairs = 2 * features * self._visibility.keys(length)
        return 2.0 * (factors + products * features + features * d_model + pairs)

    def cache_bytes(self, length: int) -> int:
        if not self.dims.is_causal:
            return 0
        config = self.config
        numbers = (config.key_rank + config.value_rank) * (config.num_heads + self._head_dim)
        return token_cache_bytes(length, numbers * jnp.dtype(self.dims.dtype).itemsize)


def _products(of_heads: jax.Array, of_features: jax.Array) -> jax.Array:
    """(1/R) Σ_r a_r ⊗ b_r: [batch, length, heads, R] and [batch, length, R, head_dim] →
    [batch, length, heads, head_dim]."""
    return jnp.einsum("blhr,blrd->blhd", of_heads, of_features) / of_heads.shape[-1]
