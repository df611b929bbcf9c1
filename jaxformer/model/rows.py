"""What every layer knows about its rows, and what it returns beside its output."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops.attention import Order


class Memory(NamedTuple):
    """What an encoder has made of the sources of a batch. Tokens of a decoder see the places whose
    document has the number of their own."""

    states: jax.Array  # [batch, source_length, the encoder's d_model]
    segment_ids: jax.Array  # int32 [batch, source_length]; 0 is padding


class RowInfo(NamedTuple):
    """Positions and documents of the tokens of a batch, each array [batch, length] but those of the
    last two fields."""

    positions: jax.Array  # int32, the token's place in its document
    segment_ids: jax.Array  # int32, the document of the token; 0 is padding
    # What tokens see, if not the tokens before them in the row. When a cache is continued, a rank
    # is a place in the row, and no token is private.
    order: Order | None = None
    tokens: jax.Array | None = None  # int32, their ids, where layers see each token
    memory: Memory | None = None  # in a decoder, unless its caches have it
    # [batch, heads, buckets], see `with_bias`: the same for every row of the batch, so that it can
    # be split into micro-batches.
    relative_bias: jax.Array | None = None

    def of_tokens(self) -> "RowInfo":
        """Without what is not of single tokens."""
        return self._replace(memory=None, relative_bias=None)

    def each(self, function: Callable[[jax.Array], jax.Array]) -> "RowInfo":
        """The rows with every array [batch, length] as `function` makes it."""
        return self.with_rest(jax.tree.map(function, self.of_tokens()))

    def with_rest(self, tokens: "RowInfo") -> "RowInfo":
        """Some of the tokens, or all in another order, with what is not of single tokens."""
        return tokens._replace(memory=self.memory, relative_bias=self.relative_bias)


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
