"""RMSNorm and LayerNorm.

RMSNorm: Zhang and Sennrich, 2019, arXiv:1910.07467. LayerNorm: Ba et al., 2016, arXiv:1607.06450.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, PositiveFloat

from jaxformer.schema.base import Schema


class NormConfig(Schema):
    """Which norm, and where it stands around a sub-layer f.

    pre: x + f(norm(x)); post: norm(x + f(x)); sandwich: x + norm(f(norm(x))); after: x + norm(f(x))
    (OLMo 2, arXiv:2501.00656).
    """

    kind: Literal["rms", "layer"] = "rms"
    placement: Literal["pre", "post", "sandwich", "after"] = Field(
        "pre", description="where the norm stands around a sub-layer"
    )
    eps: PositiveFloat = Field(1e-6, description="added to the mean square, or to the variance")
    bias: bool = Field(False, description="gives layer norms a bias")


def rms_normalize(x: jax.Array, eps: float) -> jax.Array:
    """x / √(mean(x²) + ε) over the last axis, in float32 or wider, returned in x's type."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Not jnp.square: with its gradient XLA on a CPU writes broadcasts of the scale to memory.
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype)


def layer_normalize(x: jax.Array, eps: float) -> jax.Array:
    """(x − mean(x)) / √(var(x) + ε) over the last axis, in float32 or wider, in x's type."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return rms_normalize(wide - jnp.mean(wide, axis=-1, keepdims=True), eps).astype(x.dtype)


def unit_normalize(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """x / √(Σ x² + ε) over the last axis, in float32 or wider, returned in x's type."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    scale = jax.lax.rsqrt(jnp.sum(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype)


class Norm(nn.Module):
    """normalize(x) ⊙ scale (+ bias) over the last axis; the scale starts at one.

    `axis_name` is the logical axis of the normalised dimension.
    """

    config: NormConfig
    axis_name: str = "vector"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        normalize = {"rms": rms_normalize, "layer": layer_normalize}[self.config.kind]
        names, shape = (self.axis_name,), (x.shape[-1],)
        scale = self.param(
            "scale", nn.with_logical_partitioning(nn.initializers.ones, names), shape, jnp.float32
        )
        y = normalize(x, self.config.eps) * scale.astype(x.dtype)
        if self.config.bias:
            bias = self.param(
                "bias",
                nn.with_logical_partitioning(nn.initializers.zeros, names),
                shape,
                jnp.float32,
            )
            y = y + bias.astype(x.dtype)
        return y
