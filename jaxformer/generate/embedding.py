"""Vectors of texts, from an encoder: texts of like meaning have vectors of like direction, if the
model was trained for that (Reimers and Gurevych, 2019, arXiv:1908.10084)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import UserError
from jaxformer.model.language_model import LanguageModel
from jaxformer.parallel.mesh import data_shards
from jaxformer.parallel.rules import put_rows, use_mesh, whole

AT_ONCE = 32  # texts
STEP = 32  # rows have a multiple of so many tokens, or programs would be compiled for each length


def embed_texts(
    model: LanguageModel, params: Any, tokenizer: Tokenizer, texts: Sequence[str], mesh: Mesh
) -> np.ndarray:
    """v / ‖v‖ with v the mean of the last layer's output over the tokens of each text, its
    beginning and its end among them: float32 [texts, d_model].

    Raises:
        UserError: the model is no encoder of text, there is no text, or one is too long.
    """
    config = model.config
    if config.order != "full" or config.outputs.of_rows or config.inputs.reads != "text":
        raise UserError(
            f"embed takes texts to vectors with an encoder, but this run has model.order "
            f"{config.order}, inputs {config.inputs.kind} and outputs {config.outputs.kind}; give "
            f"a run with order full, such as one of configs/models/bert-base.yaml"
        )
    if not texts:
        raise UserError("there is no text to embed; give at least one")
    rows = [[*tokenizer.prefix_ids, *tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    longest = max(map(len, rows))
    if longest > config.longest_row:
        raise UserError(
            f"a text has {longest} tokens, but model.positions has max_length "
            f"{config.longest_row}; cut it into parts"
        )
    length = min(longest + -longest % STEP, config.longest_row)

    size = min(AT_ONCE, len(rows))
    size += -size % data_shards(mesh.shape)
    found = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        tokens, segment_ids = np.zeros((2, size, int(length)), np.int32)
        segment_ids[:, 0] = 1  # of rows that fill the batch
        for number, row in enumerate(part):
            tokens[number, : len(row)], segment_ids[number, : len(row)] = row, 1
        rows_here = (put_rows(each, mesh) for each in (tokens, segment_ids))
        with use_mesh(mesh):
            found.append(whole(_vectors(model, params, *rows_here))[: len(part)])
    return np.concatenate(found)


@partial(jax.jit, static_argnums=0)
def _vectors(
    model: LanguageModel, params: Any, tokens: jax.Array, segment_ids: jax.Array
) -> jax.Array:
    x, _, _ = model.apply({"params": params}, tokens, segment_ids=segment_ids, method="trunk")
    x = model.apply({"params": params}, x, method="bare_normed").astype(jnp.float32)
    mean = jnp.mean(x, axis=1, where=(segment_ids != 0)[..., None])
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)
