"""Root mean squares per layer: of activations, and of what an update reads and writes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.model.config import ModelConfig
from jaxformer.model.parameter_paths import by_path

PyTree = Any
Layers = dict[str, jax.Array]

MEANS = ("activation",)
SUMS = ("gradient", "update", "weight")


def squares(tree: PyTree, model: ModelConfig) -> jax.Array:
    """Sums of squares per layer of parameters, or of arrays of their shapes: [layers + 1], with
    those outside the layers last."""
    sums = jnp.zeros(model.num_layers + 1, jnp.float32)
    for path, leaf in by_path(tree).items():
        layers = model.layers_of_path(path)
        if layers is None:
            sums = sums.at[-1].add(jnp.sum(jnp.square(leaf)))
        else:
            rows = jnp.square(leaf).reshape(len(layers), -1)
            sums = sums.at[np.asarray(layers)].add(jnp.sum(rows, axis=-1))
    return sums


def counts(tree: PyTree, model: ModelConfig) -> np.ndarray:
    """How many parameters each layer has, and how many are outside the layers: [layers + 1]."""
    found = np.zeros(model.num_layers + 1, np.int64)
    for path, leaf in by_path(tree).items():
        layers = model.layers_of_path(path)
        places = (model.num_layers,) if layers is None else layers
        found[list(places)] += math.prod(leaf.shape) // len(places)
    return found


def rows(step: int, layers: dict[str, np.ndarray], numbers: np.ndarray) -> list[dict[str, Any]]:
    """One row of metrics per layer, and a last one, whose layer is null, for all other parameters.

    Args:
        layers: by the name of its metric, as `make_train_step` gives it: a mean square per layer
            (MEANS), a sum of squares per layer (SUMS), or a statistic of the layers' own.
        numbers: what `counts` gives.
    """
    found: list[dict[str, Any]] = []
    for index, number in enumerate(numbers.tolist()):
        row: dict[str, Any] = {"step": step, "layer": index if index + 1 < len(numbers) else None}
        for name, values in layers.items():
            if index >= len(values):
                continue
            if name in SUMS:
                row[f"{name}_rms"] = float(np.sqrt(values[index] / max(number, 1)))
            elif name in MEANS:
                row[f"{name}_rms"] = float(np.sqrt(values[index]))
            elif values.ndim == 1:
                row[name] = float(values[index])
            else:
                row |= {f"{name}/{place}": float(x) for place, x in enumerate(values[index])}
        found.append(row | {"parameters": number})
    return found
