"""Targets of texts, such as translations, written by a decoder with an encoder."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxformer.batch import Source
from jaxformer.config import Config
from jaxformer.data.pairs import decoder_start
from jaxformer.data.tokenizers import Tokenizer, source_ids
from jaxformer.errors import UserError
from jaxformer.generate.beam_search import BeamSearch, write
from jaxformer.generate.text import until_end
from jaxformer.model.depth.stack import separate_layers
from jaxformer.model.language_model import LanguageModel
from jaxformer.parallel.mesh import data_shards
from jaxformer.parallel.rules import put_rows, use_mesh, whole
from jaxformer.terminal import progress, say

AT_ONCE = 32  # texts

# Compiled once for every model and search, whatever calls them.
_write = jax.jit(write, static_argnums=(0, 1, 2, 3))
_separate = jax.jit(separate_layers)


def translate(
    model: LanguageModel,
    params: Any,
    config: Config,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    mesh: Mesh,
    search: BeamSearch,
) -> list[str]:
    """The likeliest target of each text. Of a text with more tokens than the encoder reads, those
    behind are left out, and it is said of how many texts.

    Raises:
        UserError: the run was not trained on pairs.
    """
    if config.data.kind != "pairs" or config.model.encoder is None:
        raise UserError(
            f"this run was trained on data.kind {config.data.kind}; translate is for runs of "
            f"data.kind pairs"
        )
    if not texts:
        return []
    length = config.model.encoder.length
    ids = source_ids(tokenizer, texts)
    long = sum(len(each) > length for each in ids)
    if long:
        say(f"{long:,} of {len(ids):,} texts are cut to the {length} tokens that the encoder reads")
        ids = [each if len(each) <= length else _cut(each, length) for each in ids]
    ends = (decoder_start(config.data, tokenizer), tokenizer.eos_id)
    if search.max_new_tokens is None:
        search = replace(search, max_new_tokens=config.data.sequence_length)
    step = partial(_write, model.clone(layout="separate"), search, *ends)
    separate = _separate(params)
    size = min(AT_ONCE, len(texts))
    size += -size % data_shards(mesh.shape)
    found: list[str] = []
    with use_mesh(mesh, config.mesh.table), progress("translating", len(texts)) as report:
        for start in range(0, len(texts), size):
            part = ids[start : start + size]
            # Rows that fill up repeat a text: of nothing, a search would go on to its limit.
            filled = [*part, *[part[-1]] * (size - len(part))]
            rows = Source(*(put_rows(array, mesh) for array in _rows(filled, length)))
            tokens = whole(step(separate, rows).tokens)[: len(part)]
            found += [tokenizer.decode(until_end(row, tokenizer.eos_id)) for row in tokens]
            report(len(found))
    return found


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
