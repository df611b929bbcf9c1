"""Multipliers of the logits and of what sub-layers add to the stream."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel, build_model
from jaxformer.model.residuals import scaled
from jaxformer.model.several_ahead import losses_ahead

VOCAB, LENGTH = 11, 8
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH))
TARGETS = np.roll(TOKENS, -1, axis=1)
POSITIONS = np.broadcast_to(np.arange(LENGTH), TOKENS.shape)
ONES, MASK = np.ones_like(TOKENS), np.arange(2 * LENGTH).reshape(2, LENGTH) % 3 > 0
MODEL = {
    "d_model": 8,
    "num_layers": 3,
    "vocab_size": VOCAB,
    "mixer": {"kind": "attention", "num_heads": 2},
    "ffn": {"kind": "swiglu", "d_hidden": 12},
    "init": {"std": 0.5},
}
SCALE = 0.3
EXITS = {"depth": {"kind": "exits"}}
FURTHER = {"further": {"kind": "heads", "count": 2}}
OWN_NORMS = {"further": {"kind": "modules", "count": 2, "own_norms": True}}


def model_of(**options: object) -> LanguageModel:
    return build_model(ModelConfig.model_validate(MODEL | options), dtype=jnp.float64)


def parameters(model: LanguageModel) -> dict:
    start = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
    return jax.tree.map(lambda x: x.astype(jnp.float64), meta.unbox(start))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def step(model: LanguageModel, params: dict) -> jax.Array:
    cache = model.init_cache(2, LENGTH)
    return model.apply({"params": params}, TOKENS, POSITIONS, ONES, cache, method="step")[0]


def of_method(method: str, *more: np.ndarray) -> Callable:
    rows = (TOKENS, *more)
    return lambda model, params: model.apply({"params": params}, *rows, method=method)[0]


def ahead(model: LanguageModel, params: dict) -> object:
    rows = (TOKENS, TARGETS, POSITIONS, ONES, MASK)
    return model.apply({"params": params}, *rows, method=losses_ahead)[0]


@pytest.mark.parametrize(
    ("reads", "options"),
    [
        (lambda model, params: model.apply({"params": params}, TOKENS), {}),
        (step, {}),
        (of_method("predict", POSITIONS, ONES), {}),
        (of_method("scores", TARGETS, POSITIONS, ONES, MASK), {}),
        (of_method("loss", TARGETS, POSITIONS, ONES, MASK, 1e-2), {}),
        (of_method("loss", TARGETS, POSITIONS, ONES, MASK, 1e-2), EXITS),
        (ahead, FURTHER),
        (ahead, OWN_NORMS),
    ],
    ids=["call", "step", "predict", "scores", "loss", "loss of exits", "ahead", "own norms"],
)
def test_the_scale_of_logits_is_one_of_the_head_however_it_is_read(
    reads: Callable, options: dict
) -> None:
    options = {**options, "tie_embeddings": False, "logit_softcap": 2.0}
    plain, model = model_of(**options), model_of(**options, logit_scale=SCALE)
    params = parameters(plain)
    smaller = params | {"head": SCALE * params["head"]}
    expected, found, other = (
        jax.tree.leaves(jax.jit(partial(reads, of))(weights))
        for of, weights in ((plain, smaller), (model, params), (plain, params))
    )
    for one, same in zip(expected, found, strict=True):
        np.testing.assert_allclose(same, one, rtol=1e-6)
    assert np.abs(np.asarray(other[0]) - found[0]).max() > 0.01


def test_logits_of_tied_embeddings_are_scaled_before_they_are_capped() -> None:
    params = parameters(model_of())
    plain, capped = (
        model_of(**options).apply({"params": params}, TOKENS)
        for options in ({}, {"logit_scale": SCALE, "logit_softcap": 2.0})
    )
    np.testing.assert_allclose(capped, 2 * np.tanh(SCALE * plain / 2), rtol=1e-6)


@pytest.mark.parametrize(
    ("placement", "names"),
    [
        ("pre", ("mixer/output/kernel", "ffn/out/kernel")),
        ("post", ("mixer/output/kernel", "ffn/out/kernel")),
        ("after", ("mixer_norm/scale", "ffn_norm/scale")),
        ("sandwich", ("mixer_norm_after/scale", "ffn_norm_after/scale")),
    ],
)
def test_a_residual_multiplier_is_one_of_what_sub_layers_add(
    placement: str, names: tuple[str, ...]
) -> None:
    """It is the same as a multiplier of the last parameters that an addend passes through."""
    norm = {"norm": {"placement": placement}}
    plain = model_of(**norm)
    model = model_of(**norm, residual={"kind": "plain", "multiplier": SCALE})
    params = parameters(plain)
    paths = [("layer_0", *name.split("/")) for name in names]

    def smaller(path: tuple, leaf: jax.Array) -> jax.Array:
        keys = tuple(each.key for each in path)
        return SCALE * leaf if keys[2:] in paths else leaf

    scaled_down = jax.tree_util.tree_map_with_path(smaller, params)
    found = model.apply({"params": params}, TOKENS)
    np.testing.assert_allclose(found, plain.apply({"params": scaled_down}, TOKENS), rtol=1e-6)
    assert np.abs(found - plain.apply({"params": params}, TOKENS)).max() > 0.01


def test_a_multiplier_is_not_rounded_to_the_type_of_activations() -> None:
    """0.22 is 0.2197 in bfloat16, which would shrink every addend by an eighth of a percent."""
    x = jnp.arange(128, 256).astype(jnp.bfloat16)  # every bfloat16 number between these
    y = scaled(x, 0.22)
    assert y.dtype == jnp.bfloat16
    ratio = jnp.mean(y, dtype=jnp.float32) / jnp.mean(x, dtype=jnp.float32)
    np.testing.assert_allclose(ratio, 0.22, rtol=3e-4)
