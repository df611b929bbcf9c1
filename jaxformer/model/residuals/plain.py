"""The residual connection: a sub-layer's output is added to its input (He et al., 2016,
arXiv:1512.03385)."""

from typing import Literal

import jax
import jax.numpy as jnp
from pydantic import Field, PositiveFloat

from jaxformer.model.residuals.base import Residual, ResidualConfig
from jaxformer.parallel.stream import constrain_stream, gather_tokens


class PlainConfig(ResidualConfig):
    """A sub-layer's output is added to the stream; `model.norm.placement` says where norms are."""

    kind: Literal["plain"] = "plain"
    multiplier: PositiveFloat = Field(
        1.0, description="multiplies what every sub-layer adds to the stream (Granite)"
    )


class OneStream(Residual):
    """x + f(N(x)) for a sub-layer f, or another placement of the norm N."""

    def start(self, x: jax.Array) -> jax.Array:
        return x

    def read(self, stream: jax.Array, sublayer: str) -> jax.Array:
        return gather_tokens(self.placement(sublayer).before(stream))

    def write(self, stream: jax.Array, y: jax.Array, sublayer: str) -> jax.Array:
        y = self.weighed(self.addend(y, sublayer), sublayer)
        return constrain_stream(self.placement(sublayer).joined(stream, y))

    def weighed(self, y: jax.Array, sublayer: str) -> jax.Array:
        """What is added, times its weight."""
        return y

    def finish(self, stream: jax.Array) -> jax.Array:
        return stream


class Plain(OneStream):
    """x + m f(N(x)) for a sub-layer f and a multiplier m, or another placement of the norm N."""

    config: PlainConfig

    def weighed(self, y: jax.Array, sublayer: str) -> jax.Array:
        return scaled(y, self.config.multiplier)


def scaled(x: jax.Array, factor: float | jax.Array) -> jax.Array:
    """factor · x, computed in float32 or wider and returned in x's type."""
    if isinstance(factor, float) and factor == 1.0:
        return x
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * factor).astype(x.dtype)
