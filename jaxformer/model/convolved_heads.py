"""The short convolution on queries, keys and values before a matrix memory, and their cache."""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from jaxformer.model.dims import Dims
from jaxformer.model.mixers.matrix_memory import MemorySizes
from jaxformer.model.projection import Projection
from jaxformer.model.short_convolution import ConvolutionCache, ShortConvolution
from jaxformer.ops.decay import State


@struct.dataclass
class ConvolvedCache:
    memory: State
    convolution: ConvolutionCache  # of queries, keys and values side by side

    @classmethod
    def empty(
        cls, batch: int, sizes: MemorySizes, width: int, channels: int, dtype: DTypeLike
    ) -> "ConvolvedCache":
        convolution = ConvolutionCache.empty(batch, width, channels, dtype)
        return cls(sizes.empty(batch, dtype), convolution)

    @staticmethod
    def bytes(sizes: MemorySizes, width: int, channels: int, dtype: DTypeLike) -> int:
        """Of one sequence."""
        return sizes.bytes(dtype) + ConvolutionCache.bytes(width, channels, dtype)


def convolved_heads(
    x: jax.Array,
    dims: Dims,
    shapes: Mapping[str, tuple[int, ...]],
    width: int,
    segment_ids: jax.Array,
    cache: ConvolutionCache,
) -> tuple[list[jax.Array], ConvolutionCache]:
    """silu(conv(W x)) for every W named in `shapes`, inside a compact call.

    Args:
        x: [batch, length, d_model].
        shapes: name → (heads, head_dim) or (steps, heads, head_dim).
        width: of the convolution.
        segment_ids: [batch, length].
        cache: of all channels, in the order of `shapes`.

    Returns:
        (an array [batch, length, *shape] for each name, the cache after x).
    """
    matrix, rows = dims.init.matrix(dims.d_model), x.shape[:2]
    projected = [
        Projection(
            shape, ("d_model", *("steps", "heads", "head_dim")[-len(shape) :]), matrix, name=name
        )(x).reshape(*rows, -1)
        for name, shape in shapes.items()
    ]
    mixed, cache = ShortConvolution(width, axis_name="heads", name="conv")(
        jnp.concatenate(projected, axis=-1), segment_ids, cache
    )
    mixed, parts, start = nn.silu(mixed), [], 0
    for shape in shapes.values():
        channels = math.prod(shape)
        parts.append(mixed[..., start : start + channels].reshape(*rows, *shape))
        start += channels
    return parts, cache
