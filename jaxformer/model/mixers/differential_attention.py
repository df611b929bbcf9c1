"""Differential attention: one softmax map minus another (Ye et al., 2024, arXiv:2410.05258)."""

import math
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from pydantic import Field, PositiveInt

from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.mixers.options import LogitFactor, NumHeads, NumKVHeads, check_heads
from jaxformer.model.mixers.token_cache import TokenCache, token_cache_bytes
from jaxformer.model.positions import PositionsUnion, RoPEConfig, rope, rope_rotation
from jaxformer.model.projections import HeadsOutput, project_heads
from jaxformer.model.rows import RowInfo
from jaxformer.ops.attention import Visibility, attend
from jaxformer.ops.kernels.choice import choose
from jaxformer.ops.row_attention import prefill_attention, row_attention
from jaxformer.parallel.rules import mesh_axes


class DifferentialAttentionConfig(MixerConfig):
    """A head has two queries and two keys of `head_dim` features, and one value of twice as many:
    half as many heads as those of attention make as many parameters."""

    kind: Literal["differential_attention"] = "differential_attention"
    num_heads: NumHeads = 8
    num_kv_heads: NumKVHeads = None
    head_dim: PositiveInt | None = Field(
        None, description="features of a query and a key; d_model / (2 · num_heads) if null"
    )
    lambda_init: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(
        None,
        description="the weight of the second map at first; 0.8 − 0.6 e^{−0.3 (l − 1)} in layer "
        "l = 1, 2, … if null",
    )
    scale: LogitFactor = None

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        if self.head_dim is None and d_model % (2 * self.num_heads):
            raise ValueError(
                f"d_model {d_model} is not divisible by 2 × num_heads = {2 * self.num_heads}; "
                f"change one, or give head_dim"
            )
        check_heads(d_model, self.num_heads, self.kv_heads, self.head_size(d_model))
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
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    def head_size(self, d_model: int) -> int:
        return self.head_dim or d_model // (2 * self.num_heads)


class DifferentialAttention(Mixer):
    """y = (1 − λ_init) W_o concat_h (scale ⊙ RMSNorm((A₁ − λ A₂) v)),

    A_i = softmax(q_i · k_i / √head_dim),  λ = e^{λ_q1 · λ_k1} − e^{λ_q2 · λ_k2} + λ_init,

    with q_1, q_2, k_1, k_2 and v of each head, and one λ and one scale for all heads (equations 1
    to 3).
    """

    form = "pairs"
    kernel = "splash (TPU)"
    rewinds = True

    config: DifferentialAttentionConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: TokenCache | None = None
    ) -> tuple[jax.Array, TokenCache | None]:
        config, dims, head_dim = self.config, self.dims, self._head_dim
        q = project_heads(x, dims, "query", 2 * config.num_heads, head_dim)
        k = project_heads(x, dims, "key", 2 * config.kv_heads, head_dim, axis="kv_heads")
        v = project_heads(x, dims, "value", config.kv_heads, 2 * head_dim, axis="kv_heads")
        if isinstance(self.scheme, RoPEConfig):
            rotation = rope_rotation(rows, self.scheme, head_dim, x.dtype)
            q, k = rope(q, rotation), rope(k, rotation)
        q, k = _pairs(q), _pairs(k)

        # Initialization runs on a row too short for a kernel.
        kernel = "xla" if self.is_initializing() else dims.kernels.attention
        of_rows = {"kernel": kernel, "place": mesh_axes("batch", "kv_heads"), **self._options}
        if cache is None:
            first, second = (
                row_attention(q[..., i, :], k[..., i, :], v, *rows[:3], **of_rows) for i in (0, 1)
            )
        else:
            is_empty = jnp.all(cache.length == 0)
            cache, new = cache.appended({"k": k, "v": v}, rows)
            queries, keys, kept = new._replace(given=rows.order), cache.tokens, cache.kept

            def mixed(i: int) -> jax.Array:
                own = (q[..., i, :], k[..., i, :], v, *rows[:3])
                all_of = (q[..., i, :], kept["k"][..., i, :], kept["v"], queries, keys)
                return prefill_attention(
                    is_empty, lambda: attend(*all_of, **self._options), *own, **of_rows
                )

            first, second = mixed(0), mixed(1)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        o = first.astype(wide) - self._lambda().astype(wide) * second.astype(wide)
        y = HeadsOutput(dims, eps=1e-5, name="out")(o.astype(x.dtype), x)
        return (1 - self._lambda_init).astype(y.dtype) * y, cache

    @property
    def _head_dim(self) -> int:
        return self.config.head_size(self.dims.d_model)

    @property
    def _lambda_init(self) -> jax.Array:
        """[]: larger in higher layers, unless it is given."""
        if self.config.lambda_init is not None:
            return jnp.asarray(self.config.lambda_init)
        return 0.8 - 0.6 * jnp.exp(-0.3 * jnp.asarray(self.number))

    def _lambda(self) -> jax.Array:
        """[]: λ, the same for all heads."""
        start = nn.with_logical_partitioning(nn.initializers.normal(0.1), ("head_dim",))
        q1, k1, q2, k2 = (
            self.param(f"lambda_{name}", start, (self._head_dim,), jnp.float32)
            for name in ("q1", "k1", "q2", "k2")
        )
        return jnp.exp(jnp.sum(q1 * k1)) - jnp.exp(jnp.sum(q2 * k2)) + self._lambda_init

    @property
    def _visibility(self) -> Visibility:
        dims = self.dims
        return Visibility(is_causal=dims.is_causal, is_whole=dims.grid is not None)

    @property
    def _options(self) -> dict:
        scale = self.config.scale or 1 / math.sqrt(self._head_dim)
        return {"visibility": self._visibility, "scale": scale}

    def kernels(self, length: int) -> tuple[str, ...]:
        config, size = self.config, self._head_dim
        q, v = (
            jax.ShapeDtypeStruct((1, length, *of_head), self.dims.dtype)
            for of_head in ((config.num_heads, size), (config.kv_heads, 2 * size))
        )
        chosen = choose(self.dims.kernels.attention, q, v, **self._options)
        return (f"differential_attention {chosen}",)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> TokenCache:
        if not self.dims.is_causal:
            self.refuse_cache()
        heads, size = self.config.kv_heads, self._head_dim
        keys = jnp.zeros((batch, max_length, heads, 2, size), dtype)
        return TokenCache.of({"k": keys, "v": jnp.zeros((*keys.shape[:3], 2 * size), dtype)})

    def rewind(self, cache: TokenCache, counts: jax.Array) -> TokenCache:
        return cache.without(counts)

    def flops(self, length: int) -> float:
        """Each map meets the values by itself, as kernels of attention have it."""
        config, features = self.config, 2 * self._head_dim  # of both keys, and of a value
        projected = (2 * config.num_heads + 2 * config.kv_heads) * features
        pairs = 6.0 * config.num_heads * features * self._visibility.keys(length)
        return 2.0 * self.dims.d_model * projected + pairs

    def cache_bytes(self, length: int) -> int:
        if not self.dims.is_causal:
            return 0
        features = 2 * self.config.kv_heads * 2 * self._head_dim
        return token_cache_bytes(length, features * jnp.dtype(self.dims.dtype).itemsize)


def _pairs(x: jax.Array) -> jax.Array:
    """[batch, length, 2 · heads, head_dim] → [batch, length, heads, 2, head_dim]"""
    return x.reshape(*x.shape[:2], -1, 2, x.shape[-1])
