"""Where norms stand around a sub-layer, and how the stream and its output are joined."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.model.norms import Norm, NormConfig

Number = int | jax.Array  # of a layer, from 0 at the bottom; an array where layers are scanned


@dataclass(frozen=True)
class Placement:
    """x + f(x): no norms.

    One for each sub-layer f of each layer. `made` holds the modules that its methods make, which
    belong to the layer in whose compact method they are called.
    """

    norm: NormConfig
    sublayer: str  # mixer or ffn
    number: Number
    num_layers: int
    sublayers: int  # of all layers
    made: dict[str, Any]

    source: ClassVar[str] = ""  # the paper
    # Whether the sub-layer's output is added to the stream and that is all, so that there may be
    # several streams.
    is_additive: ClassVar[bool] = True

    @staticmethod
    def gain(sublayers: int) -> float | None:
        """What the matrices of values, of FFNs and of outputs are multiplied by when they start,
        for so many sub-layers, in place of 1/√(2 · num_layers) of outputs; None where nothing is
        published."""
        return None

    def before(self, x: jax.Array) -> jax.Array:
        """What f reads, of the stream."""
        return x

    def added(self, y: jax.Array) -> jax.Array:
        """What is added to the stream, of f's output."""
        return y

    def joined(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """The stream x after f, with what f adds."""
        return x + y

    def _normalised(self, x: jax.Array, name: str = "norm") -> jax.Array:
        name = f"{self.sublayer}_{name}"
        if name not in self.made:
            self.made[name] = Norm(self.norm.around(self.sublayer), name=name)
        normalised: jax.Array = self.made[name](x)
        return normalised


class Pre(Placement):
    """x + f(N(x))."""

    source = "arXiv:2002.04745"

    def before(self, x: jax.Array) -> jax.Array:
        return self._normalised(x)


class Post(Placement):
    """N(x + f(x))."""

    source = "arXiv:1706.03762"
    is_additive = False

    def joined(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return self._normalised(x + y)


class Sandwich(Pre):
    """x + N(f(N(x))). With `inputs.embedding_norm` it is peri-LN (arXiv:2502.02732), whose norm
    after the last layer it has as well."""

    source = "arXiv:2105.13290"

    def added(self, y: jax.Array) -> jax.Array:
        return self._normalised(y, "norm_after")


class After(Placement):
    """x + N(f(x))."""

    source = "arXiv:2501.00656"

    def added(self, y: jax.Array) -> jax.Array:
        return self._normalised(y)


class SubLN(Pre):
    """x + W N(g(N(x))) for a sub-layer f(x) = W g(x) with output matrix W. With S sub-layers, which
    are 2N for N layers, the gain is √(ln S)."""

    # The norm inside of f is the mixer's and the FFN's: see `Dims.sub_norm`.
    source = "arXiv:2210.06423"

    @staticmethod
    def gain(sublayers: int) -> float:
        return math.sqrt(math.log(sublayers))


class DeepNorm(Post):
    """N(α x + f(x)). With S sub-layers, which are 2N for N layers, α = S^¼ and the gain is
    (4S)^−¼."""

    source = "arXiv:2203.00555"

    @staticmethod
    def gain(sublayers: int) -> float:
        return float((4 * sublayers) ** -0.25)

    def joined(self, x: jax.Array, y: jax.Array) -> jax.Array:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        alpha = self.sublayers**0.25
        return self._normalised((alpha * x.astype(wide)).astype(x.dtype) + y)


class LayerNormScaling(Pre):
    """x + f(N(x) / √l) in layer l = 1, 2, …; outputs start as other matrices do."""

    source = "arXiv:2502.05795"

    @staticmethod
    def gain(sublayers: int) -> float:
        return 1.0

    def before(self, x: jax.Array) -> jax.Array:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        factors = jnp.asarray(1 / np.sqrt(np.arange(1.0, self.num_layers + 1)), wide)
        return (self._normalised(x).astype(wide) * factors[self.number]).astype(x.dtype)


class Mixed(Placement):
    """N(x + f(x)) in the lowest ⌊post_share · N⌋ of N layers, and x + f(N(x)) in the others."""

    source = "arXiv:2412.13795"
    is_additive = False

    def before(self, x: jax.Array) -> jax.Array:
        return jnp.where(self._is_post, x, self._normalised(x))

    def joined(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(self._is_post, self._normalised(x + y), x + y)

    @property
    def _is_post(self) -> bool | jax.Array:
        return self.number < math.floor(self.norm.post_share * self.num_layers + 1e-9)


PLACEMENTS: dict[str, type[Placement]] = {
    "none": Placement,
    "pre": Pre,
    "post": Post,
    "sandwich": Sandwich,
    "after": After,
    "sub": SubLN,
    "deepnorm": DeepNorm,
    "lns": LayerNormScaling,
    "mixed": Mixed,
}
