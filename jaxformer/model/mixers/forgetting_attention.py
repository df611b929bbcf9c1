"""Forgetting attention: softmax attention with a forget gate per head (FoX: Lin et al., 2025,
arXiv:2503.02130)."""

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
from jaxformer.model.norms import Norm, NormConfig
from jaxformer.model.positions import PositionsUnion, RoPEConfig, rope, rope_rotation
from jaxformer.model.projections import Projection, merge_heads, project_heads
from jaxformer.model.rows import RowInfo
from jaxformer.ops import shards
from jaxformer.ops.attention import LogForget, Visibility, attend
from jaxformer.ops.kernels.choice import choose
from jaxformer.ops.row_attention import row_attention
from jaxformer.parallel.rules import mesh_axes


class ForgettingAttentionConfig(MixerConfig):
    """The gates also say how far a key is, so that the paper's models have positions `none`; RoPE
    may be added. FoX (Pro) has `qk_norm`, `output_norm` and `output_gate`. It also mixes the keys
    and values of neighbouring tokens, which this mixer does not do."""

    kind: Literal["forgetting_attention"] = "forgetting_attention"
    num_heads: NumHeads = 8
    num_kv_heads: NumKVHeads = None
    head_dim: HeadDim = None
    qk_norm: bool = Field(False, description="RMSNorm of the queries and keys of each head")
    output_norm: bool = Field(False, description="RMSNorm of what each head reads")
    output_gate: bool = Field(
        False,
        description="multiplies every output feature by a sigmoid of the input, after the norm",
    )
    scale: LogitFactor = None

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        check_heads(d_model, self.num_heads, self.kv_heads, self.head_dim)
        if isinstance(positions, RoPEConfig):
            positions.rotated_size(self.head_size(d_model))

    def uses(self, positions: PositionsUnion) -> bool:
        return isinstance(positions, RoPEConfig)

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    def head_size(self, d_model: int) -> int:
        return self.head_dim or d_model // self.num_heads


class ForgettingAttention(Mixer):
    """y_i = W_o concat_h Σ_{j ≤ i} softmax_j(q_i · k_j / √head_dim + c_i − c_j) v_j,

    c_i = Σ_{l ≤ i} log f_l,  f_l = σ(w_h · x_l + b_h).

    Sums go on over the documents of a row, since only their differences within one count. With
    f = 1 it is attention; with f the same for all tokens, ALiBi of slope −log f.
    """

    form = "pairs"
    rewinds = True

    config: ForgettingAttentionConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: TokenCache | None = None
    ) -> tuple[jax.Array, TokenCache | None]:
        config, dims, head_dim = self.config, self.dims, self._head_dim
        q = project_heads(x, dims, "query", config.num_heads, head_dim)
        k = project_heads(x, dims, "key", config.kv_heads, head_dim, axis="kv_heads")
        v = project_heads(x, dims, "value", config.kv_heads, head_dim, axis="kv_heads")
        if config.qk_norm:
            q, k = self._normalize(q, "query_norm"), self._normalize(k, "key_norm")
        if isinstance(self.scheme, RoPEConfig):
            rotation = rope_rotation(rows, self.scheme, head_dim, x.dtype)
            q, k = rope(q, rotation), rope(k, rotation)

        log_forget = self._log_forget(x)
        if cache is None:
            c = _sums(log_forget, jnp.zeros_like(log_forget[:, 0]))
            # Initialization runs on a row too short for a kernel.
            kernel = "xla" if self.is_initializing() else dims.kernels.attention
            y = row_attention(
                *(q, k, v, rows.positions, rows.segment_ids),
                kernel=kernel,
                place=mesh_axes("batch", "kv_heads"),
                log_forget=c,
                **self._options,
            )
        else:
            c = _sums(log_forget, _newest(cache))
            cache, new = cache.appended({"k": k, "v": v, "c": c}, rows)
            keys, values, of_keys = (cache.kept[name] for name in ("k", "v", "c"))
            sums = LogForget(c, of_keys)
            y = attend(q, keys, values, new, cache.tokens, log_forget=sums, **self._options)

        if config.output_norm:
            y = self._normalize(y, "output_norm")
        if config.output_gate:
            y *= nn.sigmoid(project_heads(x, dims, "gate", config.num_heads, head_dim))
        return merge_heads(y, dims), cache

    @property
    def _head_dim(self) -> int:
        return self.config.head_size(self.dims.d_model)

    @property
    def _options(self) -> dict:
        scale = self.config.scale or 1 / math.sqrt(self._head_dim)
        return {"visibility": Visibility(), "scale": scale}

    def _normalize(self, y: jax.Array, name: str) -> jax.Array:
        """RMSNorm of every head of [batch, length, heads, head_dim]."""
        return Norm(NormConfig(), axis_name="head_dim", name=name)(y)

    def _log_forget(self, x: jax.Array) -> jax.Array:
        """log f [batch, length, heads], in float32 at least."""
        logits = Projection(
            (self.config.num_heads,),
            ("d_model", "heads"),
            self.dims.init.matrix(self.dims.d_model),
            use_bias=True,
            name="forget",
        )(x)
        return nn.log_sigmoid(logits.astype(_wide(x.dtype)))

    def kernels(self, length: int) -> tuple[str, ...]:
        config = self.config
        q, v = (
            jax.ShapeDtypeStruct((1, length, heads, self._head_dim), self.dims.dtype)
            for heads in (config.num_heads, config.kv_heads)
        )
        c = jax.ShapeDtypeStruct((1, length, config.num_heads), jnp.float32)
        chosen = choose(self.dims.kernels.attention, q, v, log_forget=c, **self._options)
        return (f"forgetting_attention {chosen}",)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> TokenCache:
        heads, kv_heads = self.config.num_heads, self.config.kv_heads
        shape = (batch, max_length, kv_heads, self._head_dim)
        kept = {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}
        return TokenCache.of(kept | {"c": jnp.zeros((batch, max_length, heads), _wide(dtype))})

    def rewind(self, cache: TokenCache, counts: jax.Array) -> TokenCache:
        return cache.without(counts)

    def flops(self, length: int) -> float:
        config, features = self.config, self._head_dim
        heads = (3 if config.output_gate else 2) * config.num_heads + 2 * config.kv_heads
        projected = heads * features + config.num_heads
        pairs = 4.0 * config.num_heads * features * Visibility().keys(length)
        return 2.0 * self.dims.d_model * projected + pairs

    def cache_bytes(self, length: int) -> int:
        config, dtype = self.config, jnp.dtype(self.dims.dtype)
        features = 2 * config.kv_heads * self._head_dim * dtype.itemsize
        return token_cache_bytes(length, features + config.num_heads * _wide(dtype).itemsize)


def _wide(dtype: DTypeLike) -> jnp.dtype:
    """What sums of log f are in: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


def _sums(log_forget: jax.Array, before: jax.Array) -> jax.Array:
    """c of every token [batch, length, heads], from what it was `before` [batch, heads] them."""
    c = jnp.cumsum(log_forget, axis=1)
    return c + shards.state_before(before, jnp.add, c[:, -1])[:, None]


def _newest(cache: TokenCache) -> jax.Array:
    """c of the last token so far [batch, heads]; 0 where there is none."""
    last = jnp.maximum(cache.length - 1, 0)[:, None, None]
    c = jnp.take_along_axis(cache.kept["c"], last, axis=1)[:, 0]
    return jnp.where(cache.length[:, None] > 0, c, 0)
