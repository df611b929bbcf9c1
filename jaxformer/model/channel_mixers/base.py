"""The contract of a channel mixer."""

import flax.linen as nn
import jax

from jaxformer.model.dims import Dims
from jaxformer.model.rows import RowInfo
from jaxformer.schema import Schema


class ChannelMixerConfig(Schema):
    """The options of a channel mixer; `kind` names it."""

    kind: str


class ChannelMixer(nn.Module):
    """Mixes the features of each token, and no token with another."""

    config: ChannelMixerConfig
    dims: Dims

    def __call__(self, x: jax.Array, rows: RowInfo) -> jax.Array:
        """x [batch · length, d_model] → y of the same shape.

        Args:
            x: the normalised input, the rows one after another.
            rows: where the tokens stand, each array [batch, length].
        """
        raise NotImplementedError

    def flops(self, length: int) -> float:
        """Forward FLOPs per token, on average over a sequence of `length` tokens."""
        raise NotImplementedError
