"""Convolutions over a sequence that shorten it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.model.dims import Dims


class StridedConvolution(nn.Module):
    """y_t = b + Σ_{j < width} W_j x_{stride · t + j − before}, with zeros beyond both ends.

    `names` are the logical axes of the channels in and out.
    """

    dims: Dims
    features: int
    width: int
    stride: int
    before: int
    names: tuple[str, str]
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [batch, length, channels] → [batch, length / stride, features]."""
        length, channels = x.shape[1:]
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(
                self.dims.init.matrix(self.width * channels), ("width", *self.names)
            ),
            (self.width, channels, self.features),
            jnp.float32,
        )
        behind = (length // self.stride - 1) * self.stride + self.width - self.before - length
        y = jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            (self.stride,),
            [(self.before, behind)],
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.names[1:])
            y += self.param("bias", zeros, (self.features,), jnp.float32).astype(x.dtype)
        return y
