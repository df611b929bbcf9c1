"""Weights of small models, drawn by NumPy: to compile a model's own initialisation takes as long as
to compile its gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from jaxformer.model.language_model import LanguageModel
from jaxformer.model.parameter_paths import by_path, from_paths


def shapes_of(model: LanguageModel, example: Any) -> dict:
    return meta.unbox(jax.eval_shape(model.init, jax.random.key(0), example)["params"])


def drawn(model: LanguageModel, example: Any, size: float = 0.3, seed: int = 0) -> dict:
    """Parameters in float64, none where it starts: normal, with scales around 1."""
    random, found = np.random.default_rng(seed), {}
    for path, leaf in by_path(shapes_of(model, example)).items():
        centre = 1.0 if path.endswith("scale") else 0.0
        found[path] = jnp.asarray(centre + size * random.normal(size=leaf.shape))
    return from_paths(found)
