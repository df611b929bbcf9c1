"""What every layer may know about the rows that it works on, and what it says beside its output."""

from typing import NamedTuple

import jax


class RowInfo(NamedTuple):
    """Where the tokens of a batch stand, each array [batch, length]."""

    positions: jax.Array  # int32, the token's place in its document
    segment_ids: jax.Array  # int32, the document of the token; 0 is padding


class LayerAux(NamedTuple):
    """Plain values, one per name of a statistic; scanned layers stack them."""

    stats: dict[str, jax.Array]  # sums over tokens that are no padding, float32 scalars
