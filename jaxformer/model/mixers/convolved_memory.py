"""What the mixers of the delta rule share: queries, keys and values after a short convolution, and
the caches of the convolution and the memory."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from pydantic import Field, PositiveFloat, PositiveInt

from jaxformer.model.decay_init import a_log_init, dt_bias_init
from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.mixers.matrix_memory import MemorySizes
from jaxformer.model.mixers.options import ConvWidth
from jaxformer.model.norms import unit_normalize
from jaxformer.model.projections import Projection
from jaxformer.model.short_convolution import ConvolutionCache, ShortConvolution
from jaxformer.ops.decay import State


class ConvolvedMemoryConfig(MixerConfig):
    """The options that mixers of the delta rule share."""

    num_heads: PositiveInt
    head_dim: PositiveInt
    value_expansion: PositiveFloat
    conv_width: ConvWidth = 4
    norm_eps: PositiveFloat = Field(
        1e-6, description="added to the mean square in the norm of a head's output"
    )

    @property
    def sizes(self) -> MemorySizes:
        value = round(self.value_expansion * self.head_dim)
        return MemorySizes(self.num_heads, self.head_dim, value)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes per token of query, keys and values: (heads, size) or (steps, heads, size)."""
        heads, key, value = self.sizes
        return {"query": (heads, key), "key": (heads, key), "value": (heads, value)}

    @property
    def channels(self) -> int:
        """The features of queries, keys and values, side by side."""
        return sum(math.prod(shape) for shape in self.shapes.values())


@struct.dataclass
class ConvolvedMemoryCache:
    memory: State
    convolution: ConvolutionCache  # of queries, keys and values side by side


class ConvolvedMemory(Mixer):
    """q, k, v = silu(conv(W x)), with q and k of length 1 and q divided by √K."""

    config: ConvolvedMemoryConfig

    def _queries_keys_values(
        self, x: jax.Array, segment_ids: jax.Array, cache: ConvolutionCache
    ) -> tuple[jax.Array, jax.Array, jax.Array, ConvolutionCache]:
        """(q, k, v [batch, length, *shape] each, the cache after x), inside the compact call."""
        shapes, matrix = self.config.shapes, self.dims.init.matrix(self.dims.d_model)
        rows = x.shape[:2]
        projected = [
            Projection(
                shape,
                ("d_model", *("steps", "heads", "head_dim")[-len(shape) :]),
                matrix,
                name=name,
            )(x).reshape(*rows, -1)
            for name, shape in shapes.items()
        ]
        mixed, cache = ShortConvolution(self.config.conv_width, axis_name="heads", name="conv")(
            jnp.concatenate(projected, axis=-1), segment_ids, cache
        )
        sizes = [part.shape[-1] for part in projected]
        q, k, v = (
            part.reshape(*rows, *shape)
            for part, shape in zip(
                jax.lax.split(nn.silu(mixed), sizes, axis=-1), shapes.values(), strict=True
            )
        )
        return unit_normalize(q) * self.config.head_dim**-0.5, unit_normalize(k), v, cache

    def _per_head(self, x: jax.Array, name: str) -> jax.Array:
        """W x [batch, length, heads], float32 at least, inside the compact call."""
        matrix = self.dims.init.matrix(self.dims.d_model)
        y = Projection((self.config.num_heads,), ("d_model", "heads"), matrix, name=name)(x)
        return y.astype(MemorySizes.wide(x.dtype))

    def _log_decay(self, x: jax.Array) -> jax.Array:
        """−e^{A} softplus(W_α x + b) [batch, length, heads], inside the compact call."""
        heads, names = (self.config.num_heads,), nn.with_logical_partitioning
        a_log = self.param("a_log", names(a_log_init(0.0, 16.0), ("heads",)), heads, jnp.float32)
        dt_bias = self.param("dt_bias", names(dt_bias_init, ("heads",)), heads, jnp.float32)
        return -jnp.exp(a_log) * nn.softplus(self._per_head(x, "decay") + dt_bias)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> ConvolvedMemoryCache:
        config = self.config
        return ConvolvedMemoryCache(
            config.sizes.empty(batch, dtype),
            ConvolutionCache.empty(batch, config.conv_width, config.channels, dtype),
        )

    def cache_bytes(self, length: int) -> int:
        config, dtype = self.config, self.dims.dtype
        convolution = ConvolutionCache.bytes(config.conv_width, config.channels, dtype)
        return config.sizes.bytes(dtype) + convolution
