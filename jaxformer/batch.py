"""A batch of rows, as the model and the loss see it."""

from typing import Any, NamedTuple

import numpy as np


class Source(NamedTuple):
    """What an encoder reads: rows whose documents have the numbers of those that a decoder writes.

    `inputs`, `positions` and `segment_ids` are what a `Batch` has under these names.
    """

    inputs: Any
    positions: Any = None  # int32 [rows, source_length]; None where rows are one document each
    segment_ids: Any = None


class Pair(NamedTuple):
    """The inputs of a decoder: tokens, and what its encoder reads."""

    tokens: Any  # int32 [rows, length]
    source: Any  # a `Source`


class Batch(NamedTuple):
    """Rows to train or to evaluate on; `data.kind` says what they hold. `DataConfig.spec` gives the
    shapes and types of the arrays.

    **Text**: rows cut from a token stream, all arrays `[rows, length]`. `targets[r, i]` is the
    token that follows `inputs[r, i]` in the stream. Documents of a row are numbered from 1 in
    `segment_ids`, 0 is padding; `positions` restart at 0 with each document's piece. `loss_mask` is
    True where input and target belong to the same document, so a loss summed under it never crosses
    from one document into the next.

    **Images**: a row is a picture, `inputs` are `[rows, height, width, channels]` in uint8, and
    `targets [rows, 1]` its class, where `loss_mask [rows, 1]` is True. `positions` 0 to length − 1
    and `segment_ids` 1, both `[rows, length]`, are those of the `length` patches that the model
    makes of a picture. Pictures with texts are a `Pair` of the tokens of a text and the picture:
    `positions` and `segment_ids` are the tokens', `targets` are 0, and `loss_mask [rows, 1]` says
    whether there is a pair.

    **Audio**: a row is a recording, `inputs` are `[rows, samples]` in int16, 0 behind its end, and
    `targets` and `loss_mask` `[rows, labels]` the ids of what is said, or `[rows, 1]` its class.
    `positions` and `segment_ids`, both `[rows, length]`, are those of the `length` places that the
    model makes of a row; segments are 1 for places that begin before the recording's end, and 0
    behind it. In training, a row may hold several recordings, numbered from 1, with one place of
    segment 0 between them, and one between their labels that is not in the loss; `positions`
    restart at 0 with each.

    **Pairs**: `inputs` are a `Pair`. Its tokens and all other arrays are as in text; each document
    is the target of a pair, and the tokens of document n see the source's document n. Recordings
    whose texts a decoder writes are such pairs, one in a row.

    A row that only fills up a batch is 0 in all arrays.
    """

    inputs: Any  # an array: int32; uint8 for images, int16 for audio; or a Pair
    targets: np.ndarray  # int32
    positions: np.ndarray  # int32
    segment_ids: np.ndarray  # int32
    loss_mask: np.ndarray  # bool
