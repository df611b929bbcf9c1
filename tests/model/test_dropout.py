"""Dropout by itself, and in the residual stream."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.config import Config
from jaxformer.model.config import ModelConfig
from jaxformer.model.dropout import Dropout
from jaxformer.model.language_model import build_model

MODEL = {
    "d_model": 64,
    "num_layers": 2,
    "vocab_size": 5,
    "mixer": {"kind": "attention", "num_heads": 2},
    "ffn": {"kind": "relu", "d_hidden": 8},
    "residual": {"kind": "plain", "dropout": 0.5},
    "init": {"output": "zero"},
    "norm": {"placement": "pre"},
    "positions": {"kind": "none"},
}


def test_numbers_are_dropped_at_their_rate_and_the_others_scaled():
    x = jnp.arange(1.0, 10_001.0)
    y = Dropout(0.25).apply({}, x, rngs={"dropout": jax.random.key(0)})
    kept = np.asarray(y != 0)
    # Four standard deviations of a share of 10,000.
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / 10_000)
    np.testing.assert_array_equal(y[kept], (x / 0.75)[kept])
    np.testing.assert_array_equal(Dropout(0.25).apply({}, x), x)


def test_the_stream_begins_with_dropped_embeddings_in_training_alone():
    """Where sub-layers add nothing, half of the embedding's features are twice as large."""
    model = build_model(ModelConfig.model_validate(MODEL))
    tokens = jnp.arange(5)[None]
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    plain, _, _ = model.apply({"params": params}, tokens, method="trunk")
    rngs = {"dropout": jax.random.key(1)}
    found, _, _ = model.apply({"params": params}, tokens, method="trunk", rngs=rngs)
    kept = np.asarray(found != 0)
    assert abs(kept.mean() - 0.5) < 4 * 0.5 / np.sqrt(kept.size)
    np.testing.assert_allclose(found[kept], 2 * plain[kept], rtol=1e-6)


def test_sub_layers_are_dropped_and_training_draws_the_key():
    config = Config.model_validate({"model": MODEL | {"init": {"std": 1.0, "output": "plain"}}})
    assert config.keys == ("dropout",)
    model = build_model(config.model)
    tokens = jnp.arange(5)[None]
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]

    @jax.jit
    def trunk(key: jax.Array) -> jax.Array:
        rngs = {"dropout": key}
        return model.apply({"params": params}, tokens, method="trunk", rngs=rngs)[0]

    one, other = trunk(jax.random.key(1)), trunk(jax.random.key(2))
    assert np.abs(one - other).max() > 0.1
    np.testing.assert_array_equal(one, trunk(jax.random.key(1)))
