"""Residual connections whose addends have learned weights: ReZero (Bachlechner et al., 2020,
arXiv:2003.04887) and LayerScale (Touvron et al., 2021, arXiv:2103.17239)."""

from typing import Literal

import flax.linen as nn
import jax
from pydantic import Field, PositiveFloat

from jaxformer.model.residuals.base import ResidualConfig, Weight
from jaxformer.model.residuals.plain import OneStream, scaled


class ReZeroConfig(ResidualConfig):
    """A layer's sub-layers are weighed by one learned number, which starts at 0 (ReZero,
    arXiv:2003.04887). The paper has no norms: `model.norm.placement=none`."""

    kind: Literal["rezero"] = "rezero"


class ReZero(OneStream):
    """x + a f(N(x)), with a number a of each layer that starts at 0; the norm N is placed as
    `model.norm` says."""

    config: ReZeroConfig

    def weighed(self, y: jax.Array, sublayer: str) -> jax.Array:
        if "gain" not in self.made:
            self.made["gain"] = Weight(nn.initializers.zeros, (), (), name="gain")()
        return scaled(y, self.made["gain"])


class LayerScaleConfig(ResidualConfig):
    """Every feature of a sub-layer's output is weighed by a learned number (LayerScale,
    arXiv:2103.17239)."""

    kind: Literal["layer_scale"] = "layer_scale"
    start: PositiveFloat | None = Field(
        None,
        description="what weights start at; null for 0.1 with up to 18 layers, 1e-5 with up to 24, "
        "and 1e-6 with more",
    )

    def starts_at(self, num_layers: int) -> float:
        """As published, where `start` is null."""
        if self.start is not None:
            return self.start
        return 0.1 if num_layers <= 18 else 1e-5 if num_layers <= 24 else 1e-6


class LayerScale(OneStream):
    """x + λ ⊙ f(N(x)), with a vector λ of each sub-layer."""

    config: LayerScaleConfig

    def weighed(self, y: jax.Array, sublayer: str) -> jax.Array:
        start = nn.initializers.constant(self.config.starts_at(len(self.layers)))
        weight = Weight(start, y.shape[-1:], ("vector",), name=f"{sublayer}_scale")
        return scaled(y, weight())
