"""What every part of a layer knows about the model around it."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import flax.linen as nn
from jax.typing import DTypeLike
from pydantic import Field, PositiveFloat, model_validator

from jaxformer.errors import did_you_mean
from jaxformer.model.norms import NormConfig
from jaxformer.ops.kernels.registry import names
from jaxformer.schema.base import Schema


class InitConfig(Schema):
    """The initial weight matrices, drawn from a normal distribution.

    Matrices that write into the residual stream (a mixer's and an FFN's last) are divided by
    √(2 · num_layers) when `output` is `scaled` (GPT-2), start at zero when it is `zero` (the untied
    head as well), and are like all others when it is `plain`. Placements of norms with a start of
    their own, see model.norm, replace what `scaled` does.
    """

    std: PositiveFloat | Literal["fan_in"] = Field(
        0.02, description="the standard deviation; `fan_in` is 1/√(input width)"
    )
    output: Literal["plain", "scaled", "zero"] = Field(
        "scaled", description="the matrices that write into the residual stream"
    )

    def matrix(self, fan_in: int) -> nn.initializers.Initializer:
        """The initializer of a matrix inside a layer."""
        return nn.initializers.normal(fan_in**-0.5 if self.std == "fan_in" else self.std)

    def inner_matrix(self, fan_in: int) -> nn.initializers.Initializer:
        """The initializer of a matrix below an output matrix: of values, or an FFN's first."""
        return self.matrix(fan_in)

    def output_matrix(self, fan_in: int, num_layers: int) -> nn.initializers.Initializer:
        """The initializer of a matrix that writes into the residual stream."""
        if self.output == "zero":
            return nn.initializers.zeros
        std = fan_in**-0.5 if self.std == "fan_in" else self.std
        scale = 1 / math.sqrt(2 * num_layers) if self.output == "scaled" else 1.0
        return nn.initializers.normal(std * scale)

    def with_gain(self, gain: float) -> "InitConfig":
        """The start that a placement of norms has, see `Placement.gain`."""
        return self if self.output == "plain" else GainedInit(**self.model_dump(), gain=gain)


class GainedInit(InitConfig):
    """Matrices of values, of FFNs and of outputs start `gain` times as large as others."""

    gain: PositiveFloat

    def inner_matrix(self, fan_in: int) -> nn.initializers.Initializer:
        std = fan_in**-0.5 if self.std == "fan_in" else self.std
        return nn.initializers.normal(std * self.gain)

    def output_matrix(self, fan_in: int, num_layers: int) -> nn.initializers.Initializer:
        return nn.initializers.zeros if self.output == "zero" else self.inner_matrix(fan_in)


class KernelsConfig(Schema):
    """The kernel that computes an operation in training and prefill; `xla` is none, and `auto` is
    the platform's own where it can serve."""

    attention: str = Field(
        "auto",
        description="auto, xla, splash (TPU) or cudnn (NVIDIA)",
    )

    @model_validator(mode="after")
    def _are_registered(self) -> "KernelsConfig":
        for operation, name in self:
            allowed = names(operation)
            if name not in allowed:
                raise ValueError(
                    f"{operation} is '{name}'; allowed: {', '.join(allowed)}."
                    f"{did_you_mean(name, allowed)}"
                )
        return self


AUTOMATIC = KernelsConfig()


class Grid(NamedTuple):
    """How the tokens of a picture lie: row by row, behind `before` tokens that are none of it; if
    it `is_reversed`, all of them the other way round, last token first."""

    height: int
    width: int
    before: int = 0
    is_reversed: bool = False

    def reversed(self) -> "Grid":
        return self._replace(is_reversed=not self.is_reversed)


class SourceDims(NamedTuple):
    """What an encoder gives a decoder's layers: `length` places per row, `d_model` wide."""

    d_model: int
    length: int


@dataclass(frozen=True)
class Dims:
    """Sizes and types shared by all layers; `dtype` is that of activations, `statistics` whether
    layers measure themselves. Of a cache, up to `taken_back` of the newest tokens can be taken back
    again, for which recurrences keep states if `keeps_states`, see `mixers.kept`. Where the model
    is not causal, tokens see their whole document; the tokens of pictures lie on a `grid`, and the
    layers of a decoder read a `source`. `sub_norm` is the norm before a sub-layer's output matrix,
    if there is one."""

    d_model: int
    num_layers: int
    init: InitConfig
    dtype: DTypeLike
    kernels: KernelsConfig = AUTOMATIC
    statistics: bool = False
    taken_back: int = 0
    keeps_states: bool = True
    is_causal: bool = True
    grid: Grid | None = None
    source: SourceDims | None = None
    sub_norm: NormConfig | None = None
