"""One layer of a model, with the defaults filled in."""

from jaxformer.model.channel_mixers import ChannelMixerConfig
from jaxformer.model.mixers import MixerConfig
from jaxformer.model.positions import PositionsUnion
from jaxformer.schema.base import Schema


class Layer(Schema):
    """What a layer is made of; None is a layer without that part."""

    mixer: MixerConfig | None
    ffn: ChannelMixerConfig | None
    positions: PositionsUnion

    @property
    def mixer_kind(self) -> str:
        return "none" if self.mixer is None else self.mixer.kind

    @property
    def uses_positions(self) -> bool:
        return self.mixer is not None and self.mixer.uses(self.positions)
