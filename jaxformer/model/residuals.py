"""How sub-layers are added to the residual stream, and where their norms stand."""

import jax

from jaxformer.model.norms import Norm, NormConfig
from jaxformer.parallel.stream import constrain_stream, gather_tokens, scatter_tokens


class Residual:
    """x + f(norm(x)) for a sub-layer f, or another placement of the norm, as in `NormConfig`.

    The stream x is [batch · length, d_model] inside a layer. The norms become children of the
    module in whose compact method `read` and `write` are called, with names that begin as `name`.
    """

    def __init__(self, config: NormConfig, name: str) -> None:
        self._config, self._name = config, name

    def read(self, stream: jax.Array) -> jax.Array:
        """What the sub-layer reads, [batch · length, d_model]."""
        if self._config.placement in ("pre", "sandwich"):
            stream = self._norm(stream)
        return gather_tokens(stream)

    def write(self, stream: jax.Array, y: jax.Array) -> jax.Array:
        """The stream after the sub-layer has given y [batch · length, d_model]."""
        y = scatter_tokens(y)
        match self._config.placement:
            case "pre":
                stream = stream + y
            case "post":
                stream = self._norm(stream + y)
            case "sandwich":
                stream = stream + self._norm(y, "_after")
            case "after":
                stream = stream + self._norm(y)
        return constrain_stream(stream)

    def _norm(self, x: jax.Array, suffix: str = "") -> jax.Array:
        return Norm(self._config, name=f"{self._name}_norm{suffix}")(x)
