"""Softmax attention: multi-head (Vaswani et al., 2017, arXiv:1706.03762), multi-query (Shazeer,
2019, arXiv:1911.02150) and grouped-query (Ainslie et al., 2023, arXiv:2305.13245)."""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from jaxformer.model.mixers.base import FirstValues, Mixer, MixerConfig
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
from jaxformer.model.norms import Norm, NormConfig
from jaxformer.model.positions import (
    ALiBiConfig,
    AxialRoPEConfig,
    PositionsUnion,
    RelativePositionsConfig,
    RoPEConfig,
    alibi_slopes,
    axial_rotation,
    rope,
    rope_rotation,
)
from jaxformer.model.projections import Projection, sub_normed
from jaxformer.model.rows import RowInfo
from jaxformer.ops.attention import Tokens, Visibility, appended, attend
from jaxformer.ops.kernels.choice import choose
from jaxformer.ops.row_attention import prefill_attention, row_attention
from jaxformer.parallel.rules import mesh_axes


class AttentionConfig(MixerConfig):
    kind: Literal["attention"] = "attention"
    num_heads: NumHeads = 8
    num_kv_heads: NumKVHeads = None
    head_dim: HeadDim = None
    qkv_bias: QKVBias = False
    output_bias: OutputBias = False
    qk_norm: bool | Literal["width"] = Field(
        False,
        description="RMSNorm of queries and keys: of each head (arXiv:2010.04245), or over "
        "the whole `width` (arXiv:2501.00656)",
    )
    qk_norm_eps: PositiveFloat = Field(1e-6, description="added to the mean square")
    window: PositiveInt | None = Field(
        None,
        description="how many keys a query sees, including its own, and in an encoder as many on "
        "its other side; null for all",
    )
    sinks: NonNegativeInt = Field(
        0,
        description="how many of a document's first tokens stay visible beside the window "
        "(arXiv:2309.17453)",
    )
    logit_softcap: PositiveFloat | None = Field(
        None, description="c in c · tanh(logits / c) (arXiv:2408.00118); null for none"
    )
    output_gate: bool = Field(
        False,
        description="multiplies every output feature by a sigmoid of the input (arXiv:2505.06708)",
    )
    scale: LogitFactor = None
    sink_logit: bool = Field(
        False,
        description="adds a learned logit per head to the softmax, of a key whose value is 0, so "
        "that a query may attend to nothing (gpt-oss)",
    )

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        check_heads(d_model, self.num_heads, self.kv_heads, self.head_dim)
        if self.sinks and self.window is None:
            raise ValueError(f"sinks {self.sinks} without a window: without one, all keys are seen")
        if not self.qk_norm and self.qk_norm_eps != type(self).model_fields["qk_norm_eps"].default:
            raise ValueError(
                f"qk_norm_eps {self.qk_norm_eps:g} without qk_norm: nothing is normalised; give "
                f"qk_norm: true, or leave it out"
            )
        match positions:
            case RoPEConfig():
                positions.rotated_size(self.head_size(d_model))
            case AxialRoPEConfig():
                positions.check(self.head_size(d_model))

    @property
    def has_sub_norm(self) -> bool:
        return True

    @property
    def sees_any_order(self) -> bool:
        return self.window is None  # a window counts places in the row

    @property
    def sees_both_ways(self) -> bool:
        return True

    @property
    def bias_heads(self) -> frozenset[int]:
        return frozenset({self.num_heads})

    def uses(self, positions: PositionsUnion) -> bool:
        in_attention = RoPEConfig | AxialRoPEConfig | ALiBiConfig | RelativePositionsConfig
        return isinstance(positions, in_attention)

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    def value_shape(self, d_model: int) -> tuple[int, int]:
        return self.kv_heads, self.head_size(d_model)

    def head_size(self, d_model: int) -> int:
        return self.head_dim or d_model // self.num_heads


@struct.dataclass
class KVCache:
    """Keys and values of the tokens still visible, with their positions and documents.

    Without a window, slot i holds token i. With one, each of a document's first `sinks` tokens has
    its own slot, and the others rotate through `window` more, and as many as may be taken back.
    """

    k: jax.Array  # [batch, slots, kv_heads, head_dim]
    v: jax.Array  # [batch, slots, kv_heads, head_dim]
    tokens: Tokens  # each [batch, slots]
    length: jax.Array  # [batch]: tokens so far


class Attention(Mixer):
    """y = W_o concat_h softmax(q_h · k_h / √head_dim) v_h over the visible keys."""

    form = "pairs"
    kernel = "splash (TPU), cuDNN (NVIDIA)"
    rewinds = True

    config: AttentionConfig

    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: KVCache | None = None
    ) -> tuple[jax.Array, KVCache | None]:
        y, cache, _ = self.with_values(x, rows, cache, None)
        return y, cache

    @nn.compact
    def with_values(
        self, x: jax.Array, rows: RowInfo, cache: KVCache | None, first: FirstValues | None
    ) -> tuple[jax.Array, KVCache | None, jax.Array]:
        config, d_model = self.config, self.dims.d_model
        bias, of_keys = (has_bias(config.qkv_bias, part) for part in ("query", "key"))
        q = self._project_in(x, "query", config.num_heads, "heads", bias)
        k = self._project_in(x, "key", config.kv_heads, "kv_heads", of_keys)
        own = v = self._project_in(x, "value", config.kv_heads, "kv_heads", bias)
        if first is not None:
            v = self._mixed(own, first)
        if config.qk_norm:
            q, k = self._normalize(q, "query", "heads"), self._normalize(k, "key", "kv_heads")
        rotation = self._rotation(rows, x.dtype)
        if rotation is not None:
            q, k = rope(q, rotation), rope(k, rotation)

        learned = self._learned(rows)
        if cache is None:
            y = row_attention(q, k, v, *rows[:3], **(learned | self._options_of_rows()))
        else:
            y, cache = self._continue(cache, q, k, v, rows, learned)

        if config.output_gate:
            y *= nn.sigmoid(self._project_in(x, "gate", config.num_heads, "heads", use_bias=False))
        output = Projection(
            (d_model,),
            ("heads", "head_dim", "d_model"),
            self.dims.init.output_matrix(config.num_heads * self._head_dim, self.dims.num_layers),
            config.output_bias,
            name="output",
        )(sub_normed(y, self.dims))
        return output, cache, own

    @property
    def _head_dim(self) -> int:
        return self.config.head_size(self.dims.d_model)

    def _project_in(
        self, x: jax.Array, name: str, heads: int, axis: str, use_bias: bool
    ) -> jax.Array:
        """[batch, length, d_model] → [batch, length, heads, head_dim]."""
        init = self.dims.init
        start = init.inner_matrix if name == "value" else init.matrix
        y = Projection(
            (heads, self._head_dim),
            ("d_model", axis, "head_dim"),
            start(self.dims.d_model),
            use_bias,
            name=name,
        )(x)
        return nn.with_logical_constraint(y, ("batch", "length", axis, "head_dim"))

    def _rotation(self, rows: RowInfo, dtype: DTypeLike) -> tuple[jax.Array, jax.Array] | None:
        match self.scheme:
            case RoPEConfig():
                return rope_rotation(rows, self.scheme, self._head_dim, dtype)
            case AxialRoPEConfig():
                assert self.dims.grid is not None  # as `ModelConfig` has checked
                return axial_rotation(rows, self.scheme, self.dims.grid, self._head_dim, dtype)
        return None

    def _mixed(self, v: jax.Array, first: FirstValues) -> jax.Array:
        """λ₁ v + λ₂ v₁ (arXiv:2410.17897), both of which start at ½; v in the first layer."""
        start = nn.with_logical_partitioning(nn.initializers.constant(0.5), ("branch",))
        own, of_first = self.param("value_weights", start, (2,), jnp.float32).astype(v.dtype)
        return jnp.where(first.is_first, v, own * v + of_first * first.values)

    def _learned(self, rows: RowInfo) -> dict:
        """What attention learns besides its matrices."""
        is_relative = isinstance(self.scheme, RelativePositionsConfig)
        return {
            "sink_logit": self._sink_logit() if self.config.sink_logit else None,
            "relative_bias": rows.relative_bias if is_relative else None,
        }

    def _sink_logit(self) -> jax.Array:
        """[heads]"""
        start = nn.with_logical_partitioning(nn.initializers.zeros, ("heads",))
        return self.param("sink_logit", start, (self.config.num_heads,), jnp.float32)

    def _normalize(self, x: jax.Array, name: str, axis: str) -> jax.Array:
        """RMSNorm of [batch, length, heads, head_dim], per head or over all heads."""
        norm = NormConfig(eps=self.config.qk_norm_eps)
        if self.config.qk_norm == "width":
            merged = x.reshape(*x.shape[:2], -1)
            return Norm(norm, axis_name=axis, name=f"{name}_norm")(merged).reshape(x.shape)
        return Norm(norm, axis_name="head_dim", name=f"{name}_norm")(x)

    @property
    def _visibility(self) -> Visibility:
        config, dims = self.config, self.dims
        return Visibility(config.window, config.sinks, dims.is_causal, dims.grid is not None)

    def _options(self) -> dict:
        config, slopes, max_distance = self.config, None, None
        match self.scheme:
            case ALiBiConfig():
                slopes = alibi_slopes(config.num_heads)
            case RelativePositionsConfig():
                max_distance = self.scheme.max_distance
        return {
            "visibility": self._visibility,
            "scale": config.scale or 1 / math.sqrt(self._head_dim),
            "logit_softcap": config.logit_softcap,
            "slopes": slopes,
            "max_distance": max_distance,
        }

    def _options_of_rows(self) -> dict:
        # Initialization runs on a row too short for a kernel.
        kernel = "xla" if self.is_initializing() else self.dims.kernels.attention
        return {"kernel": kernel, "place": mesh_axes("batch", "kv_heads"), **self._options()}

    def kernels(self, length: int) -> tuple[str, ...]:
        q, v = (
            jax.ShapeDtypeStruct((1, length, heads, self._head_dim), self.dims.dtype)
            for heads in (self.config.num_heads, self.config.kv_heads)
        )
        heads = jax.ShapeDtypeStruct((self.config.num_heads,), jnp.float32)
        sink = heads if self.config.sink_logit else None
        chosen = choose(self.dims.kernels.attention, q, v, sink_logit=sink, **self._options())
        return (f"attention {chosen}",)

    def _continue(
        self,
        cache: KVCache,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        rows: RowInfo,
        learned: dict,
    ) -> tuple[jax.Array, KVCache]:
        """Attention of new tokens to the cached ones and to themselves, and the longer cache."""
        length = rows.positions.shape[1]
        order = cache.length[:, None] + jnp.arange(length, dtype=jnp.int32)
        new = Tokens(order, rows.positions, rows.segment_ids)
        longer = self._write(cache, k, v, new)
        queries = new._replace(given=rows.order)
        options = learned | self._options()

        def of_cache() -> jax.Array:
            if self.config.window is None or length == 1:
                return attend(q, longer.k, longer.v, queries, longer.tokens, **options)
            # New tokens may overwrite some that the first of them still sees.
            keys, values = jnp.concatenate([cache.k, k], 1), jnp.concatenate([cache.v, v], 1)
            taken_back = cache.tokens.order >= cache.length[:, None]
            segments = jnp.where(taken_back, -1, cache.tokens.segment_ids)
            old = cache.tokens._replace(segment_ids=segments)
            tokens = jax.tree.map(lambda *pair: jnp.concatenate(pair, 1), old, new)
            return attend(q, keys, values, queries, tokens, **options)

        is_empty = jnp.all(cache.length == 0)
        of_rows = learned | self._options_of_rows()
        return prefill_attention(is_empty, of_cache, q, k, v, *rows[:3], **of_rows), longer

    def _write(self, cache: KVCache, k: jax.Array, v: jax.Array, new: Tokens) -> KVCache:
        window, sinks = self.config.window, self.config.sinks
        length = k.shape[1]
        if window is None:

            def write(old: jax.Array, update: jax.Array) -> jax.Array:
                return appended(old, update, cache.length)

        else:
            # Of several writes to a slot an arbitrary one stays: drop all but the last.
            rotating = window + self.dims.taken_back
            last = new.order > cache.length[:, None] + length - 1 - rotating
            slots = jnp.where(last, sinks + new.order % rotating, sinks + rotating)
            if sinks:
                final = _last_of_its_position(new, sinks)
                own = jnp.where(final, new.positions, sinks + rotating)
                slots = jnp.where(new.positions < sinks, own, slots)
            rows = jnp.arange(k.shape[0])[:, None]

            def write(old: jax.Array, update: jax.Array) -> jax.Array:
                return old.at[rows, slots].set(update.astype(old.dtype), mode="drop")

        return KVCache(
            k=write(cache.k, k),
            v=write(cache.v, v),
            tokens=jax.tree.map(write, cache.tokens, new),
            length=cache.length + length,
        )

    def _slots(self, max_length: int) -> int:
        window, sinks = self.config.window, self.config.sinks
        if window is None:
            return max_length
        return sinks + min(max_length, window + self.dims.taken_back)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> KVCache:
        if not self.dims.is_causal:
            self.refuse_cache()
        slots = self._slots(max_length)
        shape = (batch, slots, self.config.kv_heads, self._head_dim)
        return KVCache(
            k=jnp.zeros(shape, dtype),
            v=jnp.zeros(shape, dtype),
            tokens=Tokens(
                order=jnp.zeros((batch, slots), jnp.int32),
                positions=jnp.zeros((batch, slots), jnp.int32),
                segment_ids=jnp.full((batch, slots), -1, jnp.int32),
            ),
            length=jnp.zeros(batch, jnp.int32),
        )

    def rewind(self, cache: KVCache, counts: jax.Array) -> KVCache:
        return dataclasses.replace(cache, length=cache.length - counts)

    def flops(self, length: int) -> float:
        config, features = self.config, self._head_dim
        heads = (3 if config.output_gate else 2) * config.num_heads + 2 * config.kv_heads
        pairs = 4.0 * config.num_heads * features * self._visibility.keys(length)
        return 2.0 * self.dims.d_model * heads * features + pairs

    def cache_bytes(self, length: int) -> int:
        if not self.dims.is_causal:
            return 0
        features = 2 * self.config.kv_heads * self._head_dim
        return self._slots(length) * (features * jnp.dtype(self.dims.dtype).itemsize + 3 * 4) + 4


def _last_of_its_position(tokens: Tokens, sinks: int) -> jax.Array:
    """[batch, length], True for sinks that no later sink at the same position replaces."""
    same = tokens.positions[:, :, None] == tokens.positions[:, None, :]
    later = tokens.order[:, None, :] > tokens.order[:, :, None]
    replaced = jnp.any(same & later, axis=-1)
    return ~replaced & (tokens.positions < sinks)
