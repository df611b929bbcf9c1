"""A batch of packed rows, as the model and the loss see it."""

from typing import NamedTuple

import jax
import numpy as np


class Batch(NamedTuple):
    """Rows cut from a token stream, all arrays `[rows, length]`.

    `targets[r, i]` is the token that follows `inputs[r, i]` in the stream. Documents of a row are
    numbered from 1 in `segment_ids`, 0 is padding; `positions` restart at 0 with each document's
    piece. `loss_mask` is True where input and target belong to the same document, so a loss summed
    under it never crosses from one document into the next.
    """

    inputs: np.ndarray  # int32
    targets: np.ndarray  # int32
    positions: np.ndarray  # int32
    segment_ids: np.ndarray  # int32
    loss_mask: np.ndarray  # bool

    @classmethod
    def spec(cls, rows: int, length: int) -> "Batch":
        """The shapes and types of a batch's arrays, as `jax.ShapeDtypeStruct`s."""
        dtypes = [np.int32] * 4 + [np.bool_]
        return cls._make(jax.ShapeDtypeStruct((rows, length), dtype) for dtype in dtypes)
