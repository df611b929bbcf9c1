"""The contract of a channel mixer."""

import flax.linen as nn
import jax

from jaxformer.model.dims import Dims
from jaxformer.model.rows import LayerAux, RowInfo
from jaxformer.schema.kinds import Kind

# Filled in channel_mixers/__init__.py.
CHANNEL_MIXERS: dict[type["ChannelMixerConfig"], type["ChannelMixer"]] = {}


class ChannelMixerConfig(Kind):
    """The options of a channel mixer; `kind` names it."""

    registry = CHANNEL_MIXERS

    @property
    def experts(self) -> int:
        """How many experts it has, of which a token visits some."""
        return 0

    @property
    def active_share(self) -> float:
        """The share of the experts that a token visits."""
        return 1.0

    @property
    def is_causal(self) -> bool:
        """Whether no token affects what an earlier one gets, outside of training at least."""
        return True

    @property
    def has_sub_norm(self) -> bool:
        """Whether it can have a norm before its output matrix, see `Dims.sub_norm`."""
        return False

    @property
    def reads_tokens(self) -> bool:
        """Whether it reads the ids of tokens, `rows.tokens`."""
        return False

    @property
    def keys(self) -> tuple[str, ...]:
        """The random keys that it draws from in training, `dropout` if any."""
        return ()


class ChannelMixer(nn.Module):
    """Mixes the features of each token, and no token with another."""

    config: ChannelMixerConfig
    dims: Dims

    def __call__(self, x: jax.Array, rows: RowInfo) -> tuple[jax.Array, LayerAux]:
        """x [batch · length, d_model] → (y of the same shape, its loss and statistics).

        Args:
            x: the normalised input, the rows one after another.
            rows: positions and documents of the tokens, each array [batch, length].
        """
        raise NotImplementedError

    def kernels(self) -> list[str]:
        """What is chosen for it on the current mesh, to be told."""
        return []

    def flops(self, length: int) -> float:
        """Forward FLOPs per token, on average over a sequence of `length` tokens."""
        raise NotImplementedError
