"""A small model of two towers, and a batch for it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from jaxformer.batch import Batch, Pair, Source
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel, build_model

ATTENTION = {"kind": "attention", "num_heads": 2}
FFN = {"kind": "gelu", "d_hidden": 8}
LENGTH = 4  # of texts, and in patches of pictures
ENCODER = {
    "length": LENGTH,
    "d_model": 16,
    "num_layers": 1,
    "mixer": ATTENTION,
    "ffn": FFN,
    "positions": {"kind": "learned", "max_length": LENGTH},
    "inputs": {"kind": "patches", "size": [4, 4], "patch": 2, "channels": 1},
}
PROBE = {"pool": "probe", "probe": {"num_heads": 2, "ffn": FFN | {"bias": True}}}
OUTPUTS = {
    "kind": "contrastive",
    "width": 16,
    "tokens": {"pool": "last", "projection": "affine"},
    "source": PROBE | {"projection": "none"},
    "scale": 3.0,
    "bias": -1.0,
}
MODEL = {
    "d_model": 8,
    "num_layers": 1,
    "vocab_size": 11,
    "mixer": ATTENTION,
    "ffn": FFN,
    "positions": {"kind": "learned", "max_length": LENGTH},
    "init": {"std": 0.5, "output": "plain"},
    "outputs": OUTPUTS,
    "encoder": ENCODER,
    "tie_embeddings": False,
}


def model_of(**options: Any) -> tuple[LanguageModel, dict]:
    """The model with random parameters, all of which matter, in float64."""
    model = build_model(ModelConfig.model_validate(MODEL | options), dtype=jnp.float64)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model.config.example)
    params = meta.unbox(jax.jit(model.init)(jax.random.key(0), zeros)["params"])
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    pairs = zip(leaves, keys, strict=True)
    moved = [x + 0.1 * jax.random.normal(key, x.shape, jnp.float64) for x, key in pairs]
    return model, jax.tree.unflatten(tree, moved)


def batch_of(rows: int, missing: int = 0) -> Batch:
    """Pairs of texts of 2 to 4 tokens and pictures; the last rows only fill up the batch."""
    random = np.random.default_rng(0)
    segment_ids = (np.arange(LENGTH) < random.integers(2, LENGTH + 1, (rows, 1))).astype(np.int32)
    there = np.arange(rows)[:, None] < rows - missing
    segment_ids *= there
    tokens = random.integers(0, 11, (rows, LENGTH)).astype(np.int32) * segment_ids
    pictures = random.integers(0, 256, (rows, 4, 4, 1)).astype(np.uint8)
    positions = np.arange(LENGTH, dtype=np.int32) * segment_ids
    pair = Pair(tokens, Source(pictures * there[..., None, None].astype(np.uint8)))
    return Batch(pair, np.zeros((rows, 1), np.int32), positions, segment_ids, there)
