"""RWKV's token shift: layers see the token before each one beside it (Peng et al., 2023,
arXiv:2305.13048)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxformer.model.short_convolution import ConvolutionCache

# Published initial values depend on the depth, from 0 to 1; here all layers start as the middle.
DEPTH = 0.5


def token_before(
    x: jax.Array, segment_ids: jax.Array, cache: ConvolutionCache
) -> tuple[jax.Array, ConvolutionCache]:
    """(x of the token before, zero at the start of a document; the cache after x).

    Args:
        x: [batch, length, channels].
        segment_ids: [batch, length].
        cache: that of a convolution of width 2.
    """
    inputs, segments = cache.extended(x, segment_ids)
    same = segments[:, :-1] == segment_ids
    before = jnp.where(same[..., None], inputs[:, :-1], 0.0)
    return before, ConvolutionCache(inputs[:, -1:], segments[:, -1:])


def mix_init(power: float, extra: float = 0.0) -> nn.initializers.Initializer:
    """μ_i = 1 − (i/d)^{power · (1 − depth)} − extra · depth, over the d channels: the share that is
    taken of the token before."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        ramp = jnp.arange(shape[0], dtype=dtype) / shape[0]
        return 1 - ramp ** (power * (1 - DEPTH)) - extra * DEPTH

    return init
