"""How sub-layers are added to the residual stream, and where their norms stand."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from pydantic import Field, PositiveFloat

from jaxformer.model.dropout import Dropout
from jaxformer.model.norms import Norm, NormConfig
from jaxformer.parallel.stream import constrain_stream, gather_tokens, scatter_tokens
from jaxformer.schema.kinds import Kind

Stream = Any  # a pytree of arrays [batch, length, ...], each residual's own

RESIDUALS: dict[type["ResidualConfig"], type["Residual"]] = {}  # filled below


class ResidualConfig(Kind):
    """The options of a residual; `kind` names it."""

    registry = RESIDUALS

    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="the share of features that are 0 in training, of embeddings and of what every "
        "sub-layer gives (arXiv:1706.03762, section 5.4)",
    )

    @property
    def keys(self) -> tuple[str, ...]:
        """The random keys that it draws from in training."""
        return ("dropout",) if self.dropout else ()


@dataclass(frozen=True)
class Residual:
    """The stream that layers pass on, and how a sub-layer, `mixer` or `ffn`, reads and changes it.
    Within a layer, tokens are one axis between `start` and `finish`: [batch · length, ...].

    Parameters of `read` and `write` belong to the layer in whose compact method they are called.
    """

    config: ResidualConfig
    norm: NormConfig

    def start(self, x: jax.Array) -> Stream:
        """The stream below the first layer, of x [batch, length, d_model]."""
        raise NotImplementedError

    def read(self, stream: Stream, sublayer: str) -> jax.Array:
        """What the sub-layer reads, [batch · length, d_model]."""
        raise NotImplementedError

    def bare(self, stream: Stream) -> jax.Array:
        """What a sub-layer reads that has no norm, [batch · length, d_model]."""
        return gather_tokens(self.finish(stream))

    def write(self, stream: Stream, y: jax.Array, sublayer: str) -> Stream:
        """The stream after the sub-layer has given y [batch · length, d_model]."""
        raise NotImplementedError

    def finish(self, stream: Stream) -> jax.Array:
        """The stream as one array [..., d_model]; called inside layers and above the last."""
        raise NotImplementedError


class PlainConfig(ResidualConfig):
    """A sub-layer's output is added to the stream; `model.norm.placement` says where norms are."""

    kind: Literal["plain"] = "plain"
    multiplier: PositiveFloat = Field(
        1.0, description="multiplies what every sub-layer adds to the stream (Granite)"
    )


class Plain(Residual):
    """x + m · dropout(f(norm(x))) for a sub-layer f and a multiplier m, or another placement of the
    norm, as in `NormConfig`."""

    config: PlainConfig

    def start(self, x: jax.Array) -> jax.Array:
        return x

    def read(self, stream: jax.Array, sublayer: str) -> jax.Array:
        if self.norm.placement in ("pre", "sandwich"):
            stream = self._normalised(stream, f"{sublayer}_norm")
        return gather_tokens(stream)

    def write(self, stream: jax.Array, y: jax.Array, sublayer: str) -> jax.Array:
        y = Dropout(self.config.dropout, name=f"{sublayer}_dropout")(y)
        y, m = scatter_tokens(y), self.config.multiplier
        match self.norm.placement:
            case "pre":
                stream = stream + scaled(y, m)
            case "post":
                stream = self._normalised(stream + scaled(y, m), f"{sublayer}_norm")
            case "sandwich":
                stream = stream + scaled(self._normalised(y, f"{sublayer}_norm_after"), m)
            case "after":
                stream = stream + scaled(self._normalised(y, f"{sublayer}_norm"), m)
        return constrain_stream(stream)

    def finish(self, stream: jax.Array) -> jax.Array:
        return stream

    def _normalised(self, x: jax.Array, name: str) -> jax.Array:
        return Norm(self.norm, name=name)(x)


def scaled(x: jax.Array, factor: float) -> jax.Array:
    """factor · x, computed in float32 or wider and returned in x's type."""
    if factor == 1.0:
        return x
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * factor).astype(x.dtype)


RESIDUALS |= {
    PlainConfig: Plain,
}


def build_residual(config: ResidualConfig, norm: NormConfig) -> Residual:
    """The residual that `config.kind` names."""
    return RESIDUALS[type(config)](config, norm)
