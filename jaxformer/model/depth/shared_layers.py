"""Depths in which the layers between the first and the last ones are shared by several turns."""

from collections.abc import Sequence

import flax.linen as nn
from pydantic import NonNegativeInt

from jaxformer.model.depth.base import Depth, DepthConfig
from jaxformer.model.depth.fixed import FixedConfig, layers_of_part
from jaxformer.model.depth.stack import Stack
from jaxformer.model.layer import Layer


class SharedLayersConfig(DepthConfig):
    """`num_layers` counts each layer once: the first `before`, the last `after`, and those between,
    which are shared."""

    before: NonNegativeInt
    after: NonNegativeInt

    def check(self, num_layers: int, pattern: tuple[Layer, ...]) -> None:
        if self.before + self.after >= num_layers:
            raise ValueError(
                f"depth.before {self.before} and depth.after {self.after} leave none of num_layers "
                f"{num_layers} for the {self.kind}; allowed: up to {num_layers - 1} together"
            )

    def parts(self, num_layers: int) -> dict[str, range]:
        """The numbers of the layers of every part that has some, bottom up."""
        last = num_layers - self.after
        bounds = {
            "before": range(self.before),
            "shared": range(self.before, last),
            "after": range(last, num_layers),
        }
        return {name: numbers for name, numbers in bounds.items() if numbers}

    def layers_of_path(
        self, path: str, num_layers: int, pattern_length: int
    ) -> Sequence[int] | None:
        parts = self.parts(num_layers)
        match path.split("/"):
            case ["stack", name, part, layer, *_] if name in parts and layer.startswith("layer_"):
                numbers = parts[name]
                length = min(pattern_length, len(numbers))
                return layers_of_part(part, layer, len(numbers), length, numbers[0])
        return None


class SharedLayers(Depth):
    """Parts `before`, `shared` and `after`, each a `Stack`."""

    config: SharedLayersConfig

    @property
    def numbers(self) -> dict[str, range]:
        """The numbers of the layers of every part, bottom up."""
        return self.config.parts(len(self.layers))

    @nn.nowrap
    def _stack(self, part: str, **place: str | None) -> Stack:
        layers = tuple(self.layers[number] for number in self.numbers[part])
        return Stack(
            FixedConfig(),
            layers,
            min(self.pattern_length, len(layers)),
            self.residual,
            self.dims,
            self.remat,
            self.layout,
            below=self.numbers[part][0],
            **place,
        )
