"""Tensor product attention: queries, keys and values are made of a few outer products, and decoding
keeps their factors alone (Zhang et al., 2025, arXiv:2501.06425)."""

import dataclasses
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from pydantic import Field, PositiveInt

from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.mixers.options import HeadDim, NumHeads, check_heads
from jaxformer.model.positions import (
    ALiBiConfig,
    PositionsUnion,
    RoPEConfig,
    alibi_slopes,
    rope,
    rope_rotation,
)
from jaxformer.model.projections import Projection
from jaxformer.model.rows import RowInfo
from jaxformer.ops.attention import Tokens, Visibility, appended, attend
from jaxformer.ops.kernels.choice import choose
from jaxformer.ops.row_attention import prefill_attention, row_attention
from jaxformer.parallel.rules import mesh_axes


class TensorProductConfig(MixerConfig):
    kind: Literal["tensor_product"] = "tensor_product"
    num_heads: NumHeads = 8
    head_dim: HeadDim = None
    query_rank: PositiveInt = Field(6, description="outer products whose mean is the queries")
    key_rank: PositiveInt = Field(2, description="outer products whose mean is the keys")
    value_rank: PositiveInt = Field(2, description="outer products whose mean is the values")

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
        return isinstance(positions, RoPEConfig | ALiBiConfig)

    def head_size(self, d_model: int) -> int:
        return self.head_dim or d_model // self.num_heads


class Factors(NamedTuple):
    """Of outer products, one factor over heads and one over features."""

    heads: jax.Array  # [batch, length, rank, heads]
    features: jax.Array  # [batch, length, rank, head_dim]

    def joined(self) -> jax.Array:
        """Σ_r a_r b_rᵀ / rank, [batch, length, heads, head_dim]."""
        rank = self.heads.shape[2]
        return jnp.einsum("blrh,blrd->blhd", self.heads, self.features) / rank


@struct.dataclass
class FactorCache:
    """The factors of all tokens' keys and values; slot i holds token i."""

    keys: Factors  # [batch, slots, ...], their features rotated by position
    values: Factors
    tokens: Tokens  # each [batch, slots]
    length: jax.Array  # [batch]: tokens so far


class TensorProduct(Mixer):
    """y = W_o concat_h softmax(q_h · k_h / √head_dim) v_h over the visible keys, with

    q = Σ_r a_r b_rᵀ / R [heads, head_dim], a_r = A_r x and b_r = rope(B_r x),

    and so keys, and values without rope (equations 3.1 and 3.2).
    """

    form = "pairs"
    kernel = "splash (TPU), cuDNN (NVIDIA)"
    rewinds = True

    config: TensorProductConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: FactorCache | None = None
    ) -> tuple[jax.Array, FactorCache | None]:
        config, dims = self.config, self.dims
        queries = self._factors(x, "query", config.query_rank)
        keys = self._factors(x, "key", config.key_rank)
        values = self._factors(x, "value", config.value_rank)
        if isinstance(self.scheme, RoPEConfig):
            rotation = rope_rotation(rows, self.scheme, self._head_dim, x.dtype)
            queries, keys = (
                each._replace(features=rope(each.features, rotation)) for each in (queries, keys)
            )
        # Initialization runs on a row too short for a kernel.
        kernel = "xla" if self.is_initializing() else dims.kernels.attention
        of_rows = {"kernel": kernel, "place": mesh_axes("batch", "heads"), **self._options()}
        q, k, v = queries.joined(), keys.joined(), values.joined()
        if cache is None:
            y = row_attention(q, k, v, *rows[:3], **of_rows)
        else:
            is_empty = jnp.all(cache.length == 0)
            order = cache.length[:, None] + jnp.arange(x.shape[1], dtype=jnp.int32)
            new = Tokens(order, rows.positions, rows.segment_ids)
            cache = longer = _extended(cache, keys, values, new)

            def of_cache() -> jax.Array:
                every = (Factors(*each).joined() for each in (longer.keys, longer.values))
                given = new._replace(given=rows.order)
                wide = (each.astype(x.dtype) for each in every)
                return attend(q, *wide, given, longer.tokens, **self._options())

            y = prefill_attention(is_empty, of_cache, q, k, v, *rows[:3], **of_rows)
        output = Projection(
            (dims.d_model,),
            ("heads", "head_dim", "d_model"),
            dims.init.output_matrix(config.num_heads * self._head_dim, dims.num_layers),
            name="output",
        )(y)
        return output, cache

    def _factors(self, x: jax.Array, name: str, rank: int) -> Factors:
        parts = (("heads", self.config.num_heads), ("head_dim", self._head_dim))
        matrix = self.dims.init.matrix(self.dims.d_model)
        return Factors(
            *(
                Projection((rank, size), ("d_model", "rank", axis), matrix, name=f"{name}_{part}")(
                    x
                )
                for part, (axis, size) in zip(Factors._fields, parts, strict=True)
            )
        )

    @property
    def _head_dim(self) -> int:
        return self.config.head_size(self.dims.d_model)

    @property
    def _visibility(self) -> Visibility:
        dims = self.dims
        return Visibility(is_causal=dims.is_causal, is_whole=dims.grid is not None)

    def _options(self) -> dict:
        alibi = isinstance(self.scheme, ALiBiConfig)
        return {
            "visibility": self._visibility,
            "scale": self._head_dim**-0.5,
            "slopes": alibi_slopes(self.config.num_heads) if alibi else None,
        }

    def kernels(self, length: int) -> tuple[str, ...]:
        shape = (1, length, self.config.num_heads, self._head_dim)
        heads = jax.ShapeDtypeStruct(shape, self.dims.dtype)
        chosen = choose(self.dims.kernels.attention, heads, heads, **self._options())
        return (f"tensor_product {chosen}",)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> FactorCache:
        if not self.dims.is_causal:
            self.refuse_cache()
        sizes, places = (self.config.num_heads, self._head_dim), (batch, max_length)

        def factors(rank: int) -> Factors:
            return Factors(*(jnp.zeros((*places, rank, size), dtype) for size in sizes))

        none = jnp.zeros(places, jnp.int32)
        return FactorCache(
            factors(self.config.key_rank),
            factors(self.config.value_rank),
            Tokens(none, none, none - 1),
            jnp.zeros(batch, jnp.int32),
        )

    def rewind(self, cache: FactorCache, counts: jax.Array) -> FactorCache:
        return dataclasses.replace(cache, length=cache.length - counts)

    def flops(self, length: int) -> float:
        config, d_model = self.config, self.dims.d_model
        heads, size = config.num_heads, self._head_dim
        ranks = config.query_rank + config.key_rank + config.value_rank
        factors = ranks * (d_model * (heads + size) + heads * size)
        pairs = 2 * heads * size * self._visibility.keys(length)
        return 2.0 * (factors + heads * size * d_model + pairs)

    def cache_bytes(self, length: int) -> int:
        if not self.dims.is_causal:
            return 0
        ranks = self.config.key_rank + self.config.value_rank
        features = ranks * (self.config.num_heads + self._head_dim)
        return length * (features * jnp.dtype(self.dims.dtype).itemsize + 3 * 4) + 4


def _extended(cache: FactorCache, keys: Factors, values: Factors, new: Tokens) -> FactorCache:
    """The cache with new tokens behind the others."""
    old, added = (cache.keys, cache.values, cache.tokens), (keys, values, new)
    parts = jax.tree.map(lambda one, other: appended(one, other, cache.length), old, added)
    return FactorCache(*parts, cache.length + new.order.shape[1])
