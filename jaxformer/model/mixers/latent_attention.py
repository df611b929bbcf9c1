"""Multi-head latent attention: keys and values come from one small latent per token (DeepSeek-V2,
2024, arXiv:2405.04434)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from pydantic import Field, PositiveFloat, PositiveInt

from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.mixers.options import NumHeads
from jaxformer.model.mixers.token_cache import TokenCache, token_cache_bytes
from jaxformer.model.norms import Norm, NormConfig
from jaxformer.model.positions import (
    ALiBiConfig,
    PositionsUnion,
    RoPEConfig,
    alibi_slopes,
    rope,
    rope_rotation,
)
from jaxformer.model.projections import Projection, project_heads
from jaxformer.model.rows import RowInfo
from jaxformer.ops.attention import Visibility, attend
from jaxformer.ops.kernels.choice import choose
from jaxformer.ops.row_attention import prefill_attention, row_attention
from jaxformer.parallel.rules import mesh_axes


class LatentAttentionConfig(MixerConfig):
    """A key has `head_dim` features per head, and `rope_dim` more that all heads share."""

    kind: Literal["latent_attention"] = "latent_attention"
    num_heads: NumHeads = 8
    head_dim: PositiveInt = Field(
        64, description="features of a key per head that come from the latent"
    )
    rope_dim: PositiveInt = Field(
        32, description="features of a key that carry its position, shared by all heads"
    )
    value_dim: PositiveInt = Field(64, description="features of a value, per head")
    kv_rank: PositiveInt = Field(256, description="the width of the latent of keys and values")
    query_rank: PositiveInt | None = Field(
        None, description="the width of a latent for queries; null for none"
    )
    scale: PositiveFloat | None = Field(
        None, description="multiplies the logits; 1/√(head_dim + rope_dim) if null"
    )

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        if isinstance(positions, RoPEConfig):
            positions.rotated_size(self.rope_dim)

    @property
    def logit_scale(self) -> float:
        return self.scale or (self.head_dim + self.rope_dim) ** -0.5

    @property
    def sees_any_order(self) -> bool:
        return True

    @property
    def sees_both_ways(self) -> bool:
        return True

    def uses(self, positions: PositionsUnion) -> bool:
        return isinstance(positions, RoPEConfig | ALiBiConfig)


class LatentAttention(Mixer):
    """y = W_o concat_h softmax(scale · q_h · k_h) v_h, where [;] concatenates,

    k_h = [W_K c; rope(W_R x)],  v_h = W_V c,  q_h = [W_Q c'; rope(W_QR c')],

    c = RMSNorm(W_D x), and c' = RMSNorm(W_D' x), or x without a query_rank (equations 37 to 47).
    """

    form = "pairs"
    kernel = "splash (TPU), cuDNN (NVIDIA)"
    rewinds = True

    config: LatentAttentionConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: TokenCache | None = None
    ) -> tuple[jax.Array, TokenCache | None]:
        config, heads, init = self.config, self.config.num_heads, self.dims.init
        q = self._queries(x)
        latent = self._latent(x, "latent", config.kv_rank)
        key = Projection(
            (config.rope_dim,),
            ("d_model", "head_dim"),
            init.matrix(self.dims.d_model),
            name="rotary_key",
        )(x)[:, :, None]
        if isinstance(self.scheme, RoPEConfig):
            rotation = rope_rotation(rows, self.scheme, config.rope_dim, x.dtype)
            plain, turned = jnp.split(q, [config.head_dim], axis=-1)
            q = jnp.concatenate([plain, rope(turned, rotation)], axis=-1)
            key = rope(key, rotation)
        if cache is not None:
            is_empty = jnp.all(cache.length == 0)
            cache, new = cache.appended({"latent": latent, "key": key}, rows)
            latent, key = (cache.kept[name].astype(x.dtype) for name in ("latent", "key"))

        expand = Projection(
            (heads, config.head_dim + config.value_dim),
            ("latent", "heads", "head_dim"),
            init.matrix(config.kv_rank),
            name="expand",
        )
        k, v = jnp.split(expand(latent), [config.head_dim], axis=-1)
        shared = jnp.broadcast_to(key, (*k.shape[:3], config.rope_dim))
        k = jnp.concatenate([k, shared], axis=-1)
        # Initialization runs on a row too short for a kernel.
        kernel = "xla" if self.is_initializing() else self.dims.kernels.attention
        of_rows = {"kernel": kernel, "place": mesh_axes("batch", "heads"), **self._options()}
        if cache is None:
            y = row_attention(q, k, v, *rows[:3], **of_rows)
        else:
            length = x.shape[1]
            y = prefill_attention(
                is_empty,
                lambda: attend(
                    q, k, v, new._replace(given=rows.order), cache.tokens, **self._options()
                ),
                *(q, k[:, :length], v[:, :length], *rows[:3]),
                **of_rows,
            )
        output = Projection(
            (self.dims.d_model,),
            ("heads", "head_dim", "d_model"),
            init.output_matrix(heads * config.value_dim, self.dims.num_layers),
            name="output",
        )(y)
        return output, cache

    @property
    def _visibility(self) -> Visibility:
        dims = self.dims
        return Visibility(is_causal=dims.is_causal, is_whole=dims.grid is not None)

    def _options(self) -> dict:
        config = self.config
        alibi = isinstance(self.scheme, ALiBiConfig)
        return {
            "visibility": self._visibility,
            "scale": config.logit_scale,
            "slopes": alibi_slopes(config.num_heads) if alibi else None,
        }

    def kernels(self, length: int) -> tuple[str, ...]:
        config = self.config
        q, v = (
            jax.ShapeDtypeStruct((1, length, config.num_heads, size), self.dims.dtype)
            for size in (config.head_dim + config.rope_dim, config.value_dim)
        )
        return (f"latent_attention {choose(self.dims.kernels.attention, q, v, **self._options())}",)

    def _latent(self, x: jax.Array, name: str, rank: int) -> jax.Array:
        """RMSNorm(W x), [batch, length, rank]."""
        matrix = self.dims.init.matrix(self.dims.d_model)
        latent = Projection((rank,), ("d_model", "rank"), matrix, name=name)(x)
        return Norm(NormConfig(), axis_name="rank", name=f"{name}_norm")(latent)

    def _queries(self, x: jax.Array) -> jax.Array:
        """[batch, length, heads, head_dim + rope_dim], not yet rotated."""
        config = self.config
        size = config.head_dim + config.rope_dim
        if config.query_rank is None:
            return project_heads(x, self.dims, "query", config.num_heads, size)
        return Projection(
            (config.num_heads, size),
            ("latent", "heads", "head_dim"),
            self.dims.init.matrix(config.query_rank),
            name="query",
        )(self._latent(x, "query_latent", config.query_rank))

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> TokenCache:
        """Latents, and the rotated keys that all heads share."""
        if not self.dims.is_causal:
            self.refuse_cache()
        latent = jnp.zeros((batch, max_length, self.config.kv_rank), dtype)
        key = jnp.zeros((batch, max_length, 1, self.config.rope_dim), dtype)
        return TokenCache.of({"latent": latent, "key": key})

    def rewind(self, cache: TokenCache, counts: jax.Array) -> TokenCache:
        return cache.without(counts)

    def flops(self, length: int) -> float:
        config, d_model = self.config, self.dims.d_model
        key, value = config.head_dim + config.rope_dim, config.value_dim
        queries = d_model * config.num_heads * key
        if config.query_rank is not None:
            queries = config.query_rank * (d_model + config.num_heads * key)
        down = d_model * (config.kv_rank + config.rope_dim)
        expanded = config.kv_rank * config.num_heads * (config.head_dim + value)
        output = config.num_heads * value * d_model
        pairs = config.num_heads * (key + value) * self._visibility.keys(length)
        return 2.0 * (queries + down + expanded + output + pairs)

    def cache_bytes(self, length: int) -> int:
        if not self.dims.is_causal:
            return 0
        features = self.config.kv_rank + self.config.rope_dim
        return token_cache_bytes(length, features * jnp.dtype(self.dims.dtype).itemsize)
