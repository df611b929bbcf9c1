"""Forgetting attention where its gates are constant is attention that is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.contract import DIMS, documents, one_document
from flax.core import meta

from jaxformer.model.mixers import build_mixer
from jaxformer.model.mixers.attention import AttentionConfig
from jaxformer.model.mixers.forgetting_attention import ForgettingAttentionConfig
from jaxformer.model.positions import (
    ALiBiConfig,
    NoPositionsConfig,
    PositionsUnion,
    alibi_slopes,
)
from jaxformer.model.rows import RowInfo

HEADS, LENGTH = 2, 11


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def both(bias: np.ndarray, scheme: PositionsUnion) -> tuple[jax.Array, jax.Array]:
    """Outputs for packed documents: of forgetting attention whose gates are σ(bias) for every
    token, and of attention with the positions `scheme` and the same weights."""
    options = {"num_heads": HEADS, "num_kv_heads": 1}
    ours = build_mixer(ForgettingAttentionConfig(**options), DIMS, NoPositionsConfig(), parent=None)
    known = build_mixer(AttentionConfig(**options), DIMS, scheme, parent=None)
    x = jax.random.normal(jax.random.key(1), (2, LENGTH, DIMS.d_model))
    # Rows of one document, and of documents that follow each other.
    places = one_document(LENGTH).positions
    starts = np.array([[0] * 5 + [5] + [6] * 3 + [9] * 2, [0] * 5 + [5] + [6] * 5])
    rows = RowInfo(places - starts, documents())
    params = meta.unbox(ours.init(jax.random.key(0), x, rows)["params"])
    forget = params.pop("forget")
    expected, _ = known.apply({"params": params}, x, rows)
    gates = {"kernel": jnp.zeros_like(forget["kernel"]), "bias": jnp.asarray(bias)}
    y, _ = ours.apply({"params": params | {"forget": gates}}, x, rows)
    return y, expected


def test_gates_of_one_are_attention_without_positions_bit_for_bit() -> None:
    y, expected = both(np.full(HEADS, 1e4), NoPositionsConfig())
    np.testing.assert_array_equal(y, expected)


def test_gates_that_are_the_same_for_all_tokens_are_alibi() -> None:
    forget = np.exp(-alibi_slopes(HEADS))
    y, expected = both(np.log(forget / (1 - forget)), ALiBiConfig())
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)


def test_gates_of_zero_leave_each_token_its_own_value() -> None:
    config = ForgettingAttentionConfig(num_heads=HEADS)
    mixer = build_mixer(config, DIMS, NoPositionsConfig(), parent=None)
    x, rows = jax.random.normal(jax.random.key(1), (1, LENGTH, DIMS.d_model)), one_document(LENGTH)
    rows = jax.tree.map(lambda array: array[:1], rows)
    params = meta.unbox(mixer.init(jax.random.key(0), x, rows)["params"])
    params["forget"]["bias"] = jnp.full(HEADS, -1e4)
    y, _ = mixer.apply({"params": params}, x, rows)
    values = jnp.einsum("bld,dhf->blhf", x, params["value"]["kernel"])
    expected = jnp.einsum("blhf,hfd->bld", values, params["output"]["kernel"])
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)


def test_sums_over_a_long_row_count_where_activations_are_bfloat16() -> None:
    """They reach 200, where numbers of bfloat16 are 1 apart, and each token adds log 2."""
    length = 300
    x = np.random.default_rng(1).normal(size=(1, length, DIMS.d_model))
    x = x.astype(jnp.bfloat16).astype(np.float64)
    rows, outputs = one_document(length, batch=1), {}
    config = ForgettingAttentionConfig(num_heads=HEADS)
    for dtype in ("float64", "bfloat16"):
        dims = dataclasses.replace(DIMS, dtype=dtype)
        mixer = build_mixer(config, dims, NoPositionsConfig(), parent=None)
        params = meta.unbox(
            mixer.init(jax.random.key(0), x[:, :8], one_document(8, batch=1))["params"]
        )
        params["forget"]["kernel"] *= 0
        y, _ = mixer.apply({"params": params}, x.astype(dtype), rows)
        outputs[dtype] = np.asarray(y, np.float64)[:, -64:]
    largest = np.abs(outputs["float64"]).max()
    np.testing.assert_allclose(
        outputs["bfloat16"], outputs["float64"], rtol=0, atol=8 * 2**-8 * largest
    )
