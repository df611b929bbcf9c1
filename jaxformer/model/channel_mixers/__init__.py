"""The registry of channel mixers: a new one is its file, and its line in `CHANNEL_MIXERS`."""

from typing import TYPE_CHECKING, TypeAlias, Union

from jaxformer.model.channel_mixers.base import ChannelMixer, ChannelMixerConfig
from jaxformer.model.channel_mixers.dense import Dense, DenseConfig
from jaxformer.model.dims import Dims

CHANNEL_MIXERS: dict[type[ChannelMixerConfig], type[ChannelMixer]] = {
    DenseConfig: Dense,
}

if TYPE_CHECKING:  # a type checker cannot read a registry
    ChannelMixerUnion: TypeAlias = ChannelMixerConfig
else:
    ChannelMixerUnion = Union[tuple(CHANNEL_MIXERS)]  # noqa: UP007


def build_channel_mixer(
    config: ChannelMixerConfig, dims: Dims, **place: str | None
) -> ChannelMixer:
    """The module that `config.kind` names; `place` is name=… in a module, parent=None outside."""
    return CHANNEL_MIXERS[type(config)](config, dims, **place)


__all__ = [
    "CHANNEL_MIXERS",
    "ChannelMixer",
    "ChannelMixerConfig",
    "ChannelMixerUnion",
    "build_channel_mixer",
]
