"""The short causal convolution before many recurrences (Poli et al., 2023, arXiv:2302.10866)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from jaxformer.ops import shards


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

    def extended(self, x: jax.Array, segment_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Inputs and documents behind those before them, from the cache or the previous shard."""
        inputs = shards.tokens_before(x, self.inputs.astype(x.dtype))
        segments = shards.tokens_before(segment_ids, self.segments)
        return jnp.concatenate([inputs, x], axis=1), jnp.concatenate([segments, segment_ids], 1)

    @staticmethod
    def bytes(width: int, channels: int, dtype: DTypeLike) -> int:
        """Bytes of one sequence's cache."""
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
            jnp.float32,
        ).astype(x.dtype)
        if cache is None:
            cache = ConvolutionCache.empty(batch, width, channels, x.dtype)
        inputs, segments = cache.extended(x, segment_ids)
        y = _convolve(kernel, inputs, segments)
        if self.use_bias:
            names = (self.axis_name,)
            init = nn.with_logical_partitioning(_uniform(width**-0.5), names)
            y += self.param("bias", init, (channels,), jnp.float32).astype(x.dtype)
        return y, ConvolutionCache(inputs[:, length:], segments[:, length:])


@jax.custom_vjp
def _convolve(kernel: jax.Array, inputs: jax.Array, segments: jax.Array) -> jax.Array:
    """y_t = Σ_j w_j ⊙ x_{t−j} within documents: kernel [width, channels], inputs and segments from
    width − 1 tokens earlier on → [batch, length, channels].

    Its gradient is written out, because the transposes of the slices, sums of padded arrays, take
    more than twice as long on a CPU.
    """
    return sum(w * x for w, x in zip(kernel, _earlier(inputs, segments, len(kernel)), strict=True))


def _earlier(inputs: jax.Array, segments: jax.Array, width: int) -> list[jax.Array]:
    """x_{t−j} for j < width, zero where that token is in another document."""
    length = inputs.shape[1] - width + 1
    own = segments[:, width - 1 :]
    starts = range(width - 1, -1, -1)
    same = [(segments[:, start : start + length] == own)[..., None] for start in starts]
    moved = [inputs[:, start : start + length] for start in starts]
    return [jnp.where(s, x, 0.0) for s, x in zip(same, moved, strict=True)]


def _convolve_forward(
    kernel: jax.Array, inputs: jax.Array, segments: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return _convolve(kernel, inputs, segments), (kernel, inputs, segments)


def _convolve_backward(
    kept: tuple[jax.Array, jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    """dx_s = Σ_j w_j ⊙ dy_{s+j} within documents,  dw_j = Σ_t dy_t ⊙ x_{t−j}."""
    kernel, inputs, segments = kept
    width, length = len(kernel), inputs.shape[1]
    d_kernel = [jnp.sum(dy * x, axis=(0, 1)) for x in _earlier(inputs, segments, width)]
    dy = jnp.pad(dy, [(0, 0), (width - 1, width - 1), (0, 0)])
    of = jnp.pad(segments, [(0, 0), (0, width - 1)])  # the document of dy, zero past the end
    d_inputs = jnp.zeros_like(inputs)
    for ahead, w in enumerate(kernel):
        same = of[:, ahead : ahead + length] == segments
        d_inputs += w * jnp.where(same[..., None], dy[:, ahead : ahead + length], 0.0)
    return jnp.stack(d_kernel), d_inputs, None


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _uniform(bound: float) -> nn.initializers.Initializer:
    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
