"""What follows from how busy experts were in a step: figures, and the next selection biases."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.model.channel_mixers.moe import MoEConfig
from jaxformer.model.channel_mixers.router import SELECTION_BIAS
from jaxformer.model.config import ModelConfig
from jaxformer.model.parameter_paths import by_path, from_paths

PyTree = Any


def is_bias(path: str) -> bool:
    """Whether a parameter is one that `move_biases` moves, and no gradient reaches."""
    return path.endswith(f"/{SELECTION_BIAS}")


def figures(load: jax.Array) -> dict[str, jax.Array]:
    """Two figures per layer say how equal its load is. The load [layers, experts] is NaN where a
    layer has fewer experts.

    - `max_violation`: that of the busiest expert, as a multiple of the mean, − 1, which is 0 where
      all are equally busy (MaxVio: Wang et al., 2024, arXiv:2408.15664);
    - `idle_experts`: how many took no token.

    Both are [layers], NaN for layers without experts.
    """
    missing = jnp.all(jnp.isnan(load), axis=1)
    largest = jnp.max(jnp.where(jnp.isnan(load), -jnp.inf, load), axis=1)
    mean = jnp.nanmean(jnp.where(missing[:, None], 0.0, load), axis=1)
    idle = jnp.sum(load == 0, axis=1).astype(load.dtype)
    return {
        "max_violation": jnp.where(missing, jnp.nan, largest / mean - 1),
        "idle_experts": jnp.where(missing, jnp.nan, idle),
    }


def move_biases(
    frozen: PyTree,
    paths: Collection[str],
    load: jax.Array,
    model: ModelConfig,
    finite: jax.Array,
) -> PyTree:
    """`frozen` with b_i ← b_i + u · sign(mean load − load_i) in the biases at `paths`, and then
    their mean taken away (Wang et al., 2024, arXiv:2408.15664, algorithm 1; u is
    `balance.bias_rate`).

    Args:
        load: [layers, experts], of all tokens of a step.
        finite: whether the step updates anything.
    """
    leaves, every = by_path(frozen), model.layers()
    for path in paths:
        layers, bias = model.layers_of_path(path), leaves[path]
        assert layers is not None
        ffn = every[layers[0]].ffn
        assert isinstance(ffn, MoEConfig)
        if not (rate := ffn.balance.bias_rate):
            continue
        own = load[np.asarray(layers), : bias.shape[-1]].reshape(bias.shape)
        idle = jnp.sign(jnp.mean(own, axis=-1, keepdims=True) - own)
        moved = bias + rate * idle
        moved -= jnp.mean(moved, axis=-1, keepdims=True)
        leaves[path] = jnp.where(finite, moved, bias)
    return from_paths(leaves)
