"""The short causal convolution before many recurrences (Poli et al., 2023, arXiv:2302.10866)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike


@struct.dataclass
class ConvolutionCache:
    """The last inputs, and the document of each."""

    inputs: jax.Array  # [batch, width − 1, channels]
    segments: jax.Array  # [batch, width − 1]

    @classmethod
    def empty(cls, batch: int, width: int, channels: int, dtype: DTypeLike) -> "ConvolutionCache":
        return cls(
            jnp.zeros((batch, width - 1, channels), dtype),
            jnp.full((batch, width - 1), -1, jnp.int32),
        )

    @staticmethod
    def bytes(width: int, channels: int, dtype: DTypeLike) -> int:
        """Of one sequence."""
        return (width - 1) * (channels * jnp.dtype(dtype).itemsize + 4)


class ShortConvolution(nn.Module):
    """y_t = Σ_{j < width} w_j ⊙ x_{t−j} (+ b), over the tokens of t's document.

    The weights start uniform in ±1/√width. `axis_name` is the logical axis of the channels.
    """

    width: int
    use_bias: bool = False
    axis_name: str = "d_hidden"

    @nn.compact
    def __call__(
        self, x: jax.Array, segment_ids: jax.Array, cache: ConvolutionCache | None
    ) -> tuple[jax.Array, ConvolutionCache]:
        """x [batch, length, channels] → (y of the same shape, the cache after it)."""
        (batch, length, channels), width = x.shape, self.width
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(_uniform(width**-0.5), ("width", self.axis_name)),
            (width, channels),
        ).astype(x.dtype)
        if cache is None:
            cache = ConvolutionCache.empty(batch, width, channels, x.dtype)
        inputs = jnp.concatenate([cache.inputs.astype(x.dtype), x], axis=1)
        segments = jnp.concatenate([cache.segments, segment_ids], axis=1)
        y = kernel[0] * x
        for back in range(1, width):
            first = width - 1 - back
            same = segments[:, first : first + length] == segment_ids
            y += kernel[back] * jnp.where(same[..., None], inputs[:, first : first + length], 0.0)
        if self.use_bias:
            names = (self.axis_name,)
            init = nn.with_logical_partitioning(_uniform(width**-0.5), names)
            y += self.param("bias", init, (channels,)).astype(x.dtype)
        return y, ConvolutionCache(inputs[:, length:], segments[:, length:])


def _uniform(bound: float) -> nn.initializers.Initializer:
    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
