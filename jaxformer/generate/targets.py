"""Targets of what an encoder reads, such as translations and transcripts, written by a decoder."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxformer.batch import Source
from jaxformer.config import Config
from jaxformer.data.pairs import decoder_start
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.generate.beam_search import BeamSearch, write
from jaxformer.generate.text import until_end
from jaxformer.model.depth.stack import separate_layers
from jaxformer.model.language_model import LanguageModel
from jaxformer.parallel.mesh import data_shards
from jaxformer.parallel.rules import put_rows, use_mesh, whole
from jaxformer.terminal import progress

AT_ONCE = 32  # rows

# Compiled once for every model and search, whatever calls them.
_write = jax.jit(write, static_argnums=(0, 1, 2, 3))
_separate = jax.jit(separate_layers)


def write_targets(
    model: LanguageModel,
    params: Any,
    config: Config,
    tokenizer: Tokenizer,
    mesh: Mesh,
    search: BeamSearch,
    sources: Iterable[Source],
    count: int,
) -> list[str]:
    """The likeliest target of each row of the sources, of up to AT_ONCE rows each and `count` in
    all; without `search.max_new_tokens`, as long as rows of `data.sequence_length` tokens allow."""
    if not count:
        return []
    start = decoder_start(config.data, tokenizer)
    if search.max_new_tokens is None:
        search = replace(search, max_new_tokens=config.data.sequence_length - len(start) + 1)
    step = partial(_write, model.clone(layout="separate"), search, start, tokenizer.eos_id)
    separate = _separate(params)
    size = min(AT_ONCE, count)
    size += -size % data_shards(mesh.shape)
    found: list[str] = []
    with use_mesh(mesh, config.mesh.table), progress("writing", count) as report:
        for source in sources:
            rows = len(source.inputs)
            # Rows that fill up repeat one: of nothing, a search would go on to its limit.
            filled = (array[np.minimum(np.arange(size), rows - 1)] for array in source)
            tokens = whole(step(separate, Source(*(put_rows(x, mesh) for x in filled))).tokens)
            found += [tokenizer.decode(until_end(row, tokenizer.eos_id)) for row in tokens[:rows]]
            report(len(found))
    return found
