"""The registry of channel mixers: a new one needs a file, and a line in `CHANNEL_MIXERS`."""

from jaxformer.model.channel_mixers.base import CHANNEL_MIXERS, ChannelMixer, ChannelMixerConfig
from jaxformer.model.channel_mixers.dense import Dense, DenseConfig
from jaxformer.model.channel_mixers.moe import MoE, MoEConfig
from jaxformer.model.dims import Dims

CHANNEL_MIXERS |= {
    DenseConfig: Dense,
    MoEConfig: MoE,
}


def build_channel_mixer(
    config: ChannelMixerConfig, dims: Dims, **place: str | None
) -> ChannelMixer:
    """The module that `config.kind` names; `place` is name=… in a module, parent=None outside."""
    return CHANNEL_MIXERS[type(config)](config, dims, **place)


__all__ = [
    "CHANNEL_MIXERS",
    "ChannelMixer",
    "ChannelMixerConfig",
    "build_channel_mixer",
]
