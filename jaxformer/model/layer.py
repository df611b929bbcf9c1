"""One layer of a model: as a pattern gives it, and with the defaults filled in."""

from collections.abc import Iterable
from typing import Literal, TypeVar

from pydantic import Field

from jaxformer.model.channel_mixers import ChannelMixerConfig
from jaxformer.model.mixers import MixerConfig
from jaxformer.model.positions import PositionsUnion
from jaxformer.schema.base import Schema

Part = TypeVar("Part", bound=Schema)
MIXER_NORM = (
    "false leaves out the norm before the mixer, as in the lowest layer of ModernBERT, below which "
    "embeddings have a norm"
)


class Layer(Schema):
    """What a layer is made of; None is a layer without that part."""

    mixer: MixerConfig | None
    ffn: ChannelMixerConfig | None
    positions: PositionsUnion
    mixer_norm: bool = Field(True, description=MIXER_NORM)

    @property
    def mixer_kind(self) -> str:
        return "none" if self.mixer is None else self.mixer.kind

    @property
    def uses_positions(self) -> bool:
        return self.mixer is not None and self.mixer.uses(self.positions)


def count_sublayers(layers: Iterable[Layer]) -> int:
    """How many mixers and FFNs the layers have."""
    return sum((layer.mixer is not None) + (layer.ffn is not None) for layer in layers)


class LayerConfig(Schema):
    """One layer of a pattern. Keys that are left out or null are taken from the model's defaults;
    `none` is a layer without a mixer, or without an FFN. The positions of a layer are rope,
    axial_rope, alibi or none, because all others belong to the whole model."""

    mixer: MixerConfig | Literal["none"] | None = Field(None, description="as `model.mixer`")
    ffn: ChannelMixerConfig | Literal["none"] | None = Field(None, description="as `model.ffn`")
    positions: PositionsUnion | None = Field(None, description="as `model.positions`")
    mixer_norm: bool = Field(True, description=MIXER_NORM)

    def filled_in(
        self, mixer: MixerConfig, ffn: ChannelMixerConfig | None, positions: PositionsUnion
    ) -> Layer:
        """The layer, with these in place of what is left out."""
        return Layer(
            mixer=_part(self.mixer, mixer),
            ffn=_part(self.ffn, ffn),
            positions=self.positions or positions,
            mixer_norm=self.mixer_norm,
        )


def _part(entry: Part | Literal["none"] | None, default: Part | None) -> Part | None:
    if entry == "none":
        return None
    return default if entry is None else entry
