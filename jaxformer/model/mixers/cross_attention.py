"""Attention of a decoder to what an encoder made of the source (Vaswani et al., 2017,
arXiv:1706.03762, section 3.2.3)."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from jaxformer.model.dims import SourceDims
from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.mixers.options import (
    HeadDim,
    LogitFactor,
    NumHeads,
    NumKVHeads,
    OutputBias,
    QKVBias,
    check_heads,
    has_bias,
)
from jaxformer.model.positions import PositionsUnion
from jaxformer.model.projections import Projection, sub_normed
from jaxformer.model.rows import Memory, RowInfo
from jaxformer.ops import shards
from jaxformer.ops.attention import Tokens, Visibility, attend

# A decoder's token sees the whole source of its pair.
ALL = Visibility(is_causal=False)


class CrossAttentionConfig(MixerConfig):
    kind: Literal["cross_attention"] = "cross_attention"
    num_heads: NumHeads = 8
    num_kv_heads: NumKVHeads = None
    head_dim: HeadDim = None
    qkv_bias: QKVBias = False
    output_bias: OutputBias = False
    scale: LogitFactor = None

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        check_heads(d_model, self.num_heads, self.kv_heads, self.head_dim)

    @property
    def reads_source(self) -> bool:
        return True

    @property
    def has_sub_norm(self) -> bool:
        return True

    @property
    def sees_any_order(self) -> bool:
        return True  # none of its own tokens sees another

    @property
    def sees_both_ways(self) -> bool:
        return True

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    def head_size(self, d_model: int) -> int:
        return self.head_dim or d_model // self.num_heads


@struct.dataclass
class SourceCache:
    """Keys and values of the source, which the first call with a cache makes."""

    k: jax.Array  # [batch, source_length, kv_heads, head_dim]
    v: jax.Array  # [batch, source_length, kv_heads, head_dim]
    segment_ids: jax.Array  # [batch, source_length], −1 before the first call


class CrossAttention(Mixer):
    """y = W_o concat_h softmax(q_h · k_h / √head_dim) v_h, with queries of the decoder's tokens and
    keys and values of the encoder's states, over the source of the token's own pair."""

    form = "pairs"
    rewinds = True

    config: CrossAttentionConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: SourceCache | None = None
    ) -> tuple[jax.Array, SourceCache | None]:
        config, d_model = self.config, self.dims.d_model
        q = self._projected(x, "query", config.num_heads, "heads")
        if rows.memory is not None:
            source = self._of_source(rows.memory)
        elif cache is not None:
            source = cache
        else:
            raise ValueError("cross_attention reads a source, and the batch has none; give a Pair")
        scale = config.scale or 1 / math.sqrt(self._head_dim)
        # Positions and places in the row decide nothing here.
        queries = Tokens(rows.positions, rows.positions, rows.segment_ids)
        keys = Tokens(source.segment_ids, source.segment_ids, source.segment_ids)
        y = attend(q, source.k, source.v, queries, keys, visibility=ALL, scale=scale)
        output = Projection(
            (d_model,),
            ("heads", "head_dim", "d_model"),
            self.dims.init.output_matrix(config.num_heads * self._head_dim, self.dims.num_layers),
            config.output_bias,
            name="output",
        )(sub_normed(y, self.dims))
        return output, None if cache is None else self._kept(source, cache)

    def _of_source(self, memory: Memory) -> SourceCache:
        """Keys and values of whole rows, also where tokens are cut over `context`."""
        k = self._projected(memory.states, "key", self.config.kv_heads, "kv_heads")
        v = self._projected(memory.states, "value", self.config.kv_heads, "kv_heads")
        return SourceCache(*(shards.whole(x) for x in (k, v, memory.segment_ids)))

    def _projected(self, x: jax.Array, name: str, heads: int, axis: str) -> jax.Array:
        """[batch, length, features] → [batch, length, heads, head_dim]."""
        init = self.dims.init
        start = init.inner_matrix if name == "value" else init.matrix
        y = Projection(
            (heads, self._head_dim),
            ("d_model", axis, "head_dim"),
            start(x.shape[-1]),
            has_bias(self.config.qkv_bias, name),
            name=name,
        )(x)
        return nn.with_logical_constraint(y, ("batch", "length", axis, "head_dim"))

    def _kept(self, source: SourceCache, cache: SourceCache) -> SourceCache:
        """The source in the cache's types, with places that no token sees behind its end."""

        def placed(new: jax.Array, old: jax.Array) -> jax.Array:
            return old.at[:, : new.shape[1]].set(new.astype(old.dtype))

        return jax.tree.map(placed, source, cache)

    @property
    def _head_dim(self) -> int:
        return self.config.head_size(self.dims.d_model)

    @property
    def _source(self) -> SourceDims:
        if self.dims.source is None:
            raise ValueError("cross_attention reads a source, and the model has no encoder")
        return self.dims.source

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> SourceCache:
        places = (batch, self._source.length)
        shape = (*places, self.config.kv_heads, self._head_dim)
        segments = jnp.full(places, -1, jnp.int32)
        return SourceCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), segments)

    def rewind(self, cache: SourceCache, counts: jax.Array) -> SourceCache:
        return cache

    def flops(self, length: int) -> float:
        """With those of the source's keys and values, which are made once per row."""
        config, (d_source, places) = self.config, self._source
        features = 4.0 * config.num_heads * self._head_dim
        of_source = 4.0 * d_source * config.kv_heads * self._head_dim * places / length
        return features * (self.dims.d_model + places) + of_source

    def cache_bytes(self, length: int) -> int:
        features = 2 * self.config.kv_heads * self._head_dim
        return self._source.length * (features * jnp.dtype(self.dims.dtype).itemsize + 4)
