"""Positions by what lies around a place (Baevski et al., 2020, arXiv:2006.11477; Mohamed et al.,
2019, arXiv:1904.11660)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.model.dims import Dims
from jaxformer.model.positions import ConvolutionPositionsConfig


class PositionConvolution(nn.Module):
    """gelu(b + Σ_{j < width} W_j x_{t + j − ⌊width/2⌋}), with zeros beyond both ends. W_j is zero
    outside of `groups` blocks along its diagonal."""

    config: ConvolutionPositionsConfig
    dims: Dims

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [batch, places, d_model] → the same shape."""
        width, groups, d_model = self.config.width, self.config.groups, self.dims.d_model
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(
                nn.initializers.normal(2 / math.sqrt(width * d_model)),
                ("width", "channels", "channels_out"),
            ),
            (width, d_model // groups, d_model),
            jnp.float32,
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, ("vector",)),
            (d_model,),
            jnp.float32,
        )
        y = jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            window_strides=(1,),
            padding=[(width // 2, (width - 1) // 2)],
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=groups,
        )
        return nn.gelu(y + bias.astype(x.dtype), approximate=False)
