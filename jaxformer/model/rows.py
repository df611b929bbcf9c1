"""What every layer may know about the rows that it works on."""

from typing import NamedTuple

import jax


class RowInfo(NamedTuple):
    """Where the tokens of a batch stand, each array [batch, length]."""

    positions: jax.Array  # int32, the token's place in its document
    segment_ids: jax.Array  # int32, the document of the token; 0 is padding
