"""Small models of float64, and what their tests ask of them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.model.config import ModelConfig
from jaxformer.model.depth.stack import separate_layers
from jaxformer.model.language_model import LanguageModel, build_model
from tests.weights import drawn, shapes_of

VOCAB = 7
LENGTH = 6
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH))
TARGETS = np.random.default_rng(1).integers(0, VOCAB, (2, LENGTH))
POSITIONS = np.broadcast_to(np.arange(LENGTH), TOKENS.shape)
ONES = np.ones_like(TOKENS)
ROWS = (TOKENS, TARGETS, POSITIONS, ONES, ONES > 0)

MODEL = {
    "d_model": 8,
    "num_layers": 2,
    "vocab_size": VOCAB,
    "mixer": {"kind": "attention", "num_heads": 2},
    "ffn": {"kind": "relu2", "d_hidden": 12},
    "init": {"std": "fan_in", "output": "plain"},
}
MIXERS = {
    "attention": {"kind": "attention", "num_heads": 2, "window": 4},
    "gated_delta": {"kind": "gated_delta", "num_heads": 2, "head_dim": 4},
    "parallel": {
        "kind": "parallel",
        "mixers": [{"kind": "attention", "num_heads": 2}, {"kind": "min_gru"}],
    },
}


def model_of(depth: dict[str, Any], **options: Any) -> LanguageModel:
    config = ModelConfig.model_validate(MODEL | {"depth": depth} | options)
    return build_model(config, dtype=jnp.float64)


def parameters(model: LanguageModel) -> dict:
    return drawn(model, TOKENS)


def shapes(model: LanguageModel) -> dict:
    return shapes_of(model, TOKENS)


@functools.cache
def _hidden(model: LanguageModel) -> Any:
    def hidden(params: dict, *rows: jax.Array) -> tuple:
        return model.apply({"params": params}, *rows, method="hidden")

    return jax.jit(hidden)


def hidden(
    model: LanguageModel,
    params: dict,
    tokens: Any = TOKENS,
    positions: Any = POSITIONS,
    segment_ids: Any = ONES,
) -> np.ndarray:
    """What the outputs read, outside of training."""
    return np.asarray(_hidden(model)(params, tokens, positions, segment_ids)[0])


def loss_of(model: LanguageModel, params: dict, key: jax.Array | None = None) -> jax.Array:
    """The sum that training minimizes; with a key, as in training."""
    rngs = {} if key is None else {"depth": key}
    sums, aux = model.apply({"params": params}, *ROWS, 1e-3, method="loss", rngs=rngs)
    total = sums.loss + sums.z_loss
    return total if aux.loss is None else total + aux.loss


def differentiated(model: LanguageModel, params: dict, key: jax.Array | None = None) -> tuple:
    """(loss, gradients)."""
    return jax.jit(jax.value_and_grad(lambda p, k: loss_of(model, p, k)))(params, key)


def in_pieces(
    model: LanguageModel,
    params: dict,
    pieces: list[int],
    layout: str = "scanned",
    tokens: Any = TOKENS,
) -> np.ndarray:
    """The hidden states of rows that are read in pieces of these lengths."""
    model = model.clone(layout=layout)
    params = separate_layers(params) if layout == "separate" else params

    @jax.jit
    def read(params: dict, tokens: jax.Array, positions: jax.Array, cache: Any) -> tuple:
        ones = jnp.ones_like(tokens)
        rows = (tokens, positions, ones)
        x, cache, _ = model.apply({"params": params}, *rows, cache=cache, method="hidden")
        return x, cache

    cache, found, start = model.init_cache(2, LENGTH), [], 0
    for length in pieces:
        part = slice(start, start + length)
        x, cache = read(params, tokens[:, part], POSITIONS[:, part], cache)
        found.append(x)
        start += length
    return np.concatenate(found, axis=1)


def assert_close(actual: Any, expected: Any, relative: float = 1e-11) -> None:
    """Trees of arrays, each within `relative` of the largest expected entry of all."""
    size = max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=relative * size),
        actual,
        expected,
    )
