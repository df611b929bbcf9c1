"""What ModernBERT has that BERT has not, against its equations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from pydantic import ValidationError
from scipy.special import erf

from jaxformer.model.accounting import flops_per_token
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import build_model

VOCAB, LENGTH, D_MODEL, HEADS, HIDDEN = 7, 5, 8, 2, 12
CONFIG = {
    "d_model": D_MODEL,
    "num_layers": 2,
    "vocab_size": VOCAB,
    "mixer": {"kind": "attention", "num_heads": HEADS},
    "ffn": {"kind": "exact_geglu", "d_hidden": HIDDEN},
    "first": [{"mixer_norm": False}],
    "order": "full",
    "norm": {"kind": "layer", "eps": 1e-5},
    "positions": {"kind": "none"},
    "inputs": {"kind": "tokens", "embedding_norm": True},
    "outputs": {"kind": "transformed", "transform_bias": False},
}
TOKENS = np.array([[3, 1, 4, 1, 5]])


def normed(x: np.ndarray, norm: dict) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * norm["scale"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + erf(x / np.sqrt(2))) / 2


def attention(x: np.ndarray, weights: dict) -> np.ndarray:
    q, k, v = (
        np.einsum("td,dhf->htf", x, weights[each]["kernel"]) for each in ("query", "key", "value")
    )
    scores = np.exp(np.einsum("hqf,hkf->hqk", q, k) / np.sqrt(D_MODEL / HEADS))
    mixed = np.einsum("hqk,hkf->qhf", scores / scores.sum(-1, keepdims=True), v)
    return np.einsum("qhf,hfd->qd", mixed, weights["output"]["kernel"])


def defined(params: dict, tokens: np.ndarray) -> np.ndarray:
    lowest = params["stack"]["first"]["layer_0"]
    above = jax.tree.map(lambda x: x[0], params["stack"]["groups"]["layer_0"])
    x = normed(params["embedding"][tokens], params["embedding_norm"])
    for weights in (lowest, above):
        read = normed(x, weights["mixer_norm"]) if "mixer_norm" in weights else x
        x = x + attention(read, weights["mixer"])
        y, ffn = normed(x, weights["ffn_norm"]), weights["ffn"]
        hidden = gelu(y @ ffn["gate"]["kernel"]) * (y @ ffn["in"]["kernel"])
        x = x + hidden @ ffn["out"]["kernel"]
    y = gelu(normed(x, params["final_norm"]) @ params["transform"]["kernel"])
    y = normed(y, params["transform_norm"])
    return y @ params["embedding"].T + params["head_bias"]


def test_logits_are_those_of_the_equations() -> None:
    with jax.enable_x64(True):
        model = build_model(ModelConfig.model_validate(CONFIG), dtype=jnp.float64)
        start = meta.unbox(jax.jit(model.init)(jax.random.key(0), TOKENS)["params"])
        random = np.random.default_rng(1)
        params = jax.tree.map(lambda x: np.array(x) + 0.3 * random.normal(size=x.shape), start)
        found = jax.jit(model.apply)({"params": params}, TOKENS)
    assert "mixer_norm" not in params["stack"]["first"]["layer_0"]
    np.testing.assert_allclose(found[0], defined(params, TOKENS[0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("outputs", [{"kind": "transformed"}, {"kind": "linear", "bias": True}])
def test_a_bias_of_the_logits_costs_the_columns_that_hold_it(outputs: dict) -> None:
    """Of which there are as many as a power of two divides the width."""
    with_bias, without = (
        flops_per_token(build_model(ModelConfig.model_validate(CONFIG | {"outputs": each})), LENGTH)
        for each in (outputs, outputs | {"bias": False})
    )
    assert with_bias - without == 2 * D_MODEL * VOCAB


def test_a_norm_is_left_out_only_where_there_is_one() -> None:
    norm = {"kind": "layer", "placement": "post"}
    with pytest.raises(ValidationError, match="layer 0 has mixer_norm false, .* is post"):
        ModelConfig.model_validate(CONFIG | {"norm": norm})
