"""What every layer may know about the rows that it works on, and what it says beside its output."""

from typing import NamedTuple

import jax


class RowInfo(NamedTuple):
    """Where the tokens of a batch stand, each array [batch, length]."""

    positions: jax.Array  # int32, the token's place in its document
    segment_ids: jax.Array  # int32, the document of the token; 0 is padding


class LayerAux(NamedTuple):
    """Sums over the tokens that are no padding, float32 scalars; those of scanned layers are
    stacked."""

    stats: dict[str, jax.Array]  # by name
    loss: jax.Array | None = None  # weighted; added to the loss before it is divided by the tokens
