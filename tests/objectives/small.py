"""A model in float64 that can hide tokens, and rows of documents for it."""

from collections.abc import Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from jaxformer.batch import Batch
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel, build_model

VOCAB = 7
MODEL = {
    "d_model": 8,
    "num_layers": 2,
    "vocab_size": VOCAB,
    "mixer": {"kind": "attention", "num_heads": 2},
    "ffn": {"kind": "swiglu", "d_hidden": 12},
    "inputs": {"kind": "tokens", "mask": True},
    "init": {"std": 0.7, "output": "plain"},
    "tie_embeddings": False,
}


@cache
def model_of(positions: str = "rope", vocab_size: int = VOCAB) -> tuple[LanguageModel, dict]:
    """The model and its weights, to be called where float64 is on."""
    options = {"positions": {"kind": positions}, "vocab_size": vocab_size}
    config = ModelConfig.model_validate(MODEL | options)
    model = build_model(config, dtype=jnp.float64)
    params = meta.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), int))["params"])
    return model, jax.tree.map(lambda x: x.astype(jnp.float64), params)


def documents(*lengths: int, seed: int = 0, vocab_size: int = VOCAB) -> list[np.ndarray]:
    """Random documents, each of so many targets and the token before them."""
    random = np.random.default_rng(seed)
    return [random.integers(0, vocab_size, length + 1).astype(np.int32) for length in lengths]


def rows_of(length: int, *rows: Sequence[np.ndarray]) -> Batch:
    """Rows of whole documents, filled up with padding."""
    shape = (len(rows), length)
    inputs, targets, positions, segment_ids = (np.zeros(shape, np.int32) for _ in range(4))
    for row, pieces in enumerate(rows):
        start = 0
        for number, tokens in enumerate(pieces, start=1):
            place = slice(start, start + len(tokens) - 1)
            inputs[row, place], targets[row, place] = tokens[:-1], tokens[1:]
            positions[row, place] = np.arange(len(tokens) - 1)
            segment_ids[row, place] = number
            start = place.stop
    return Batch(inputs, targets, positions, segment_ids, segment_ids > 0)
