"""What every layer knows about its rows, and what it returns beside its output."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops.attention import Order


class RowInfo(NamedTuple):
    """Positions and documents of the tokens of a batch, each array [batch, length]."""

    positions: jax.Array  # int32, the token's place in its document
    segment_ids: jax.Array  # int32, the document of the token; 0 is padding
    # What tokens see, if not the tokens before them in the row. When a cache is continued, a rank
    # is a place in the row, and no token is private.
    order: Order | None = None
    tokens: jax.Array | None = None  # int32, their ids, where layers see each token


class Exits(NamedTuple):
    """Streams that the model's outputs may read instead of the last one: training minimizes
    Σ_n weight_n · cross-entropy(outputs(state_n))."""

    states: jax.Array  # [exits, batch, length, d_model], bottom up
    weights: jax.Array  # [exits, batch, length], float32; gradients flow to them
    enabled: jax.Array  # [exits], bool; a loss that is not enabled is not computed


EXPERT_LOAD = (
    "expert_load"  # the statistic that is an array: [experts], NaN where a layer has fewer
)


class LayerAux(NamedTuple):
    """A layer's loss and statistics: float32 sums over the tokens that are not padding, stacked
    for scanned layers. Those of inputs are scalars, whose names begin with `inputs/`."""

    stats: dict[str, jax.Array]  # by name
    loss: jax.Array | None = None  # weighted; added to the loss before division by the tokens
    exits: Exits | None = None  # of a depth that is trained through several

    def over_layers(self) -> dict[str, jax.Array]:
        """Each statistic's mean over the layers that have it."""
        return {
            name: jnp.nanmean(values) for name, values in self.stats.items() if name != EXPERT_LOAD
        }
