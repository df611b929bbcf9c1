"""Texts as an encoder reads them."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxformer.batch import Source
from jaxformer.config import Config
from jaxformer.data.tokenizers import Tokenizer, source_ids
from jaxformer.errors import UserError
from jaxformer.generate.targets import AT_ONCE
from jaxformer.terminal import say


def sources_of(config: Config, tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[Source]:
    """Rows of one text each, up to AT_ONCE in a `Source`. Of a text with more tokens than the
    encoder reads, those behind are left out, and it is said of how many texts.

    Raises:
        UserError: the run was not trained on pairs.
    """
    if config.data.kind != "pairs" or config.model.encoder is None:
        raise UserError(
            f"this run was trained on data.kind {config.data.kind}; translate is for runs of "
            f"data.kind pairs"
        )
    length = config.model.encoder.length
    ids = source_ids(tokenizer, texts)
    long = sum(len(each) > length for each in ids)
    if long:
        say(f"{long:,} of {len(ids):,} texts are cut to the {length} tokens that the encoder reads")
        ids = [each if len(each) <= length else _cut(each, length) for each in ids]
    return (_rows(ids[first : first + AT_ONCE], length) for first in range(0, len(ids), AT_ONCE))


def _cut(ids: np.ndarray, length: int) -> np.ndarray:
    """The first tokens, and the last one, which ends the text."""
    return np.concatenate([ids[: length - 1], ids[-1:]])


def _rows(ids: Sequence[np.ndarray], length: int) -> Source:
    """One document per row, [rows, length]."""
    rows = Source(*(np.zeros((len(ids), length), np.int32) for _ in Source._fields))
    for row, each in enumerate(ids):
        rows.inputs[row, : len(each)] = each
        rows.positions[row, : len(each)] = np.arange(len(each))
        rows.segment_ids[row, : len(each)] = 1
    return rows
