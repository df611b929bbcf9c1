"""What the mixers share that hand a row's tokens to another mixer in another order. They are of
encoders: a token sees others that stand behind it in the row."""

from typing import Any

import flax.linen as nn
from jax.typing import DTypeLike
from pydantic import Field

from jaxformer.model.dims import Dims
from jaxformer.model.mixers.base import Cache, Mixer, MixerConfig, build_mixer
from jaxformer.model.positions import AxialRoPEConfig, PositionsUnion


class ReorderedConfig(MixerConfig):
    mixer: MixerConfig = Field(description="the mixer within, with its own options")

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        if isinstance(positions, AxialRoPEConfig) and self.mixer.uses(positions):
            raise ValueError(
                f"positions are axial_rope, but {self.kind} gives its mixer {self.mixer.kind} the "
                f"tokens in another order than the picture's; give positions rope or none"
            )
        self.mixer.check(d_model, positions)

    @property
    def is_causal(self) -> bool:
        return False

    @property
    def needs_grid(self) -> bool:
        return self.mixer.needs_grid

    @property
    def bias_heads(self) -> frozenset[int]:
        return self.mixer.bias_heads

    def uses(self, positions: PositionsUnion) -> bool:
        return self.mixer.uses(positions)


class Reordered(Mixer):
    form = "of its parts"

    config: ReorderedConfig

    @nn.nowrap
    def within(self, dims: Dims, **place: Any) -> Mixer:
        """The mixer within; for `place` see `build_mixer`."""
        return build_mixer(self.config.mixer, dims, self.scheme, number=self.number, **place)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> Cache:
        self.refuse_cache()

    def cache_bytes(self, length: int) -> int:
        return 0
