"""Differential attention where its second map has no weight, and what it refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.contract import DIMS, one_document
from flax.core import meta

from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import build_model
from jaxformer.model.mixers import build_mixer
from jaxformer.model.mixers.differential_attention import DifferentialAttentionConfig
from jaxformer.model.norms import rms_normalize
from jaxformer.model.positions import NoPositionsConfig, RoPEConfig
from jaxformer.ops.attention import Visibility
from jaxformer.ops.row_attention import row_attention

HEADS, SIZE, LENGTH = 2, 3, 11


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def parts(config: DifferentialAttentionConfig) -> tuple:
    """The mixer, its parameters, an input and its rows."""
    mixer = build_mixer(config, DIMS, NoPositionsConfig(), parent=None)
    x, rows = jax.random.normal(jax.random.key(1), (2, LENGTH, DIMS.d_model)), one_document(LENGTH)
    return mixer, meta.unbox(mixer.init(jax.random.key(0), x, rows)["params"]), x, rows


def test_without_its_second_map_it_is_attention_with_a_norm_per_head() -> None:
    mixer, params, x, rows = parts(DifferentialAttentionConfig(num_heads=HEADS, lambda_init=0.0))
    same = {name: params[name.replace("2", "1")] for name in ("lambda_q2", "lambda_k2")}
    y, _ = mixer.apply({"params": params | same}, x, rows)  # λ = e^a − e^a
    q, k, v = (
        jnp.einsum("bld,dhf->blhf", x, params[name]["kernel"]) for name in ("query", "key", "value")
    )
    o = row_attention(
        q[:, :, ::2], k[:, :, ::2], v, *rows[:2], visibility=Visibility(), scale=SIZE**-0.5
    )
    out = params["out"]
    expected = jnp.einsum(
        "blhf,hfd->bld", rms_normalize(o, 1e-5) * out["scale"], out["output"]["kernel"]
    )
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-14)


def test_the_same_map_twice_leaves_a_share_of_one_that_the_norm_takes_away() -> None:
    """(1 − λ) A v has the direction of A v: the head norm hides λ, but for its ε."""
    outputs = []
    for start in (0.2, 0.6):
        config = DifferentialAttentionConfig(num_heads=HEADS, lambda_init=start)
        mixer, params, x, rows = parts(config)
        for name in ("query", "key"):
            kernel = params[name]["kernel"]
            params[name]["kernel"] = jnp.repeat(kernel[:, ::2], 2, axis=1)
        y, _ = mixer.apply({"params": params}, 100 * x, rows)
        outputs.append(y / (1 - start))
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=0, atol=1e-5)


def test_the_weight_starts_near_its_option() -> None:
    """λ_init plus the difference of two numbers near 1, of vectors with entries near 0.1."""
    _, params, _, _ = parts(DifferentialAttentionConfig(num_heads=1, head_dim=64))
    first, second = (
        jnp.exp(params[f"lambda_q{number}"] @ params[f"lambda_k{number}"]) for number in (1, 2)
    )
    assert 0 < abs(first - second) < 0.3
    entries = jnp.stack([params[f"lambda_{name}"] for name in ("q1", "k1", "q2", "k2")])
    assert 0.08 < jnp.std(entries) < 0.12


def test_the_weight_grows_with_the_depth() -> None:
    """In a scanned model as in one whose layers are given the weights of the paper."""
    weights = [0.8 - 0.6 * math.exp(-0.3 * layer) for layer in range(3)]
    mixer = {"kind": "differential_attention", "num_heads": 1}
    given = [{"mixer": mixer | {"lambda_init": weight}} for weight in weights]
    common = {"d_model": 8, "num_layers": 3, "vocab_size": 5, "mixer": mixer}
    common["ffn"] = {"kind": "gelu", "d_hidden": 4}
    ours, expected = (
        build_model(ModelConfig.model_validate(common | own), dtype="float64")
        for own in ({}, {"pattern": given})
    )
    tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, 5)
    params = meta.unbox(ours.init(jax.random.key(0), tokens)["params"])
    (layer,) = params["stack"]["groups"].values()
    each = {
        f"layer_{place}": jax.tree.map(lambda leaf, at=place: leaf[at : at + 1], layer)
        for place in range(3)
    }
    by_layer = params | {"stack": params["stack"] | {"groups": each}}
    np.testing.assert_allclose(
        ours.apply({"params": params}, tokens),
        expected.apply({"params": by_layer}, tokens),
        rtol=0,
        atol=1e-12,
    )


def test_widths_that_do_not_fit_are_refused() -> None:
    config = DifferentialAttentionConfig(num_heads=4)
    with pytest.raises(ValueError, match=r"d_model 12 is not divisible by 2 × num_heads = 8; chan"):
        config.check(12, NoPositionsConfig())
    with pytest.raises(ValueError, match="num_heads 4 is not divisible by num_kv_heads 3"):
        config.model_copy(update={"num_kv_heads": 3}).check(16, NoPositionsConfig())
    config.model_copy(update={"head_dim": 6}).check(12, RoPEConfig())
