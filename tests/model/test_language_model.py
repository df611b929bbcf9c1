"""The whole model: layouts, rematerialisation, hybrids, packing, and its accounts."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxformer.model.accounting import abstract_parameters, cache_bytes, flops_per_token
from jaxformer.model.config import ModelConfig
from jaxformer.model.depth.stack import separate_layers
from jaxformer.model.language_model import LanguageModel, build_model
from jaxformer.parallel.rules import RULES

VOCAB = 13
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 10))
HYBRID = {
    "d_model": 8,
    "num_layers": 5,
    "vocab_size": VOCAB,
    "mixer": {"kind": "attention", "num_heads": 2, "window": 4},
    "ffn": {"kind": "geglu", "d_hidden": 12},
    "pattern": [{}, {"mixer": {"kind": "min_gru"}, "ffn": {"kind": "relu2", "d_hidden": 16}}],
    "init": {"std": "fan_in", "output": "plain"},
}


def model_of(**options: object) -> LanguageModel:
    return build_model(ModelConfig.model_validate(HYBRID | options), dtype=jnp.float64)


def parameters(model: LanguageModel) -> dict:
    return meta.unbox(jax.jit(model.init)(jax.random.key(0), TOKENS)["params"])


def logits(model: LanguageModel, params: dict, **layout: object) -> jax.Array:
    return jax.jit(lambda p: model.apply({"params": p}, TOKENS, **layout))(params)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def test_a_hybrid_is_scanned_in_groups_with_a_tail() -> None:
    stack = parameters(model_of())["stack"]
    kernel = stack["groups"]["layer_1"]["mixer"]["update"]["kernel"]
    assert kernel.shape == (2, 8, 8) and set(stack["tail"]) == {"layer_0"}


def test_layers_that_are_all_empty_pass_the_embeddings_on() -> None:
    params = parameters(model_of(pattern=[{"mixer": "none", "ffn": "none"}]))
    assert separate_layers(params) == params


def test_layers_may_go_without_a_mixer_or_without_an_ffn() -> None:
    pattern = [{}, {"mixer": "none"}, {"ffn": "none"}, {"mixer": "none", "ffn": "none"}]
    model = model_of(num_layers=4, pattern=pattern)
    params = parameters(model)
    groups = params["stack"]["groups"]
    parts = [sorted(groups.get(f"layer_{index}", {})) for index in range(4)]
    assert parts == [["ffn", "ffn_norm", "mixer", "mixer_norm"], ["ffn", "ffn_norm"],
                     ["mixer", "mixer_norm"], []]  # fmt: skip
    whole = model_of(num_layers=4, pattern=[{}])
    halves = (flops_per_token(each, 10) - 2 * 8 * VOCAB for each in (model, whole))
    assert 2 * next(halves) == next(halves)

    ones = jnp.ones((2, 10), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(10), (2, 10))
    last, _ = model.apply(
        {"params": params}, TOKENS, positions, ones, model.init_cache(2, 10), method="step"
    )
    np.testing.assert_allclose(last, logits(model, params)[:, -1], rtol=0, atol=1e-13)


def test_layouts_agree() -> None:
    model = model_of()
    params = parameters(model)
    expected = logits(model, params)
    unrolled = logits(model.clone(layout="unrolled"), params)
    separate = logits(model.clone(layout="separate"), separate_layers(params))
    np.testing.assert_allclose(unrolled, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(separate, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialisation_changes_no_gradient(remat: str) -> None:
    model = model_of()
    params = parameters(model)

    def gradient(model: LanguageModel) -> dict:
        return jax.jit(jax.grad(lambda p: jnp.sum(model.apply({"params": p}, TOKENS) ** 2)))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-11),
        gradient(model.clone(remat=remat)),
        gradient(model),
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": {"kind": "layer", "placement": "sandwich", "bias": True}},
        {"norm": {"placement": "post"}, "positions": {"kind": "sinusoidal"}},
        {"norm": {"placement": "after"}},
        {"positions": {"kind": "learned", "max_length": 10}, "logit_softcap": 2.0},
        {"positions": {"kind": "alibi"}, "tie_embeddings": False, "scale_embeddings": True},
        {"positions": {"kind": "relative", "num_buckets": 4, "max_distance": 8}},
    ],
    ids=str,
)
def test_packed_documents_equal_each_document_alone(options: dict) -> None:
    model = model_of(**options)
    params = parameters(model)
    segment_ids = np.array([[1] * 3 + [2] * 7, [1] * 6 + [2] * 2 + [0] * 2])
    positions = np.array([[*range(3), *range(7)], [*range(6), *range(2), *range(2)]])
    packed = logits(model, params, segment_ids=segment_ids, positions=positions)
    documents = ((0, 0, 3), (0, 3, 10), (1, 0, 6), (1, 6, 8))
    # Each at the start of a row of its own; what follows it there, it does not see.
    rows = np.stack([np.roll(TOKENS[row], -start) for row, start, _ in documents])
    alone = jax.jit(model.apply)({"params": params}, rows)
    for (row, start, stop), own in zip(documents, alone, strict=True):
        np.testing.assert_allclose(packed[row, start:stop], own[: stop - start], rtol=0, atol=1e-12)


def test_embeddings_are_scaled_by_a_number_or_the_root_of_the_width() -> None:
    params = parameters(model_of())
    d_model = model_of().config.d_model
    by_root, by_number = (
        logits(model_of(scale_embeddings=scale), params) for scale in (True, math.sqrt(d_model))
    )
    np.testing.assert_array_equal(by_root, by_number)
    assert np.abs(by_root - logits(model_of(scale_embeddings=2.0), params)).max() > 0.01


def test_norm_placements_are_what_they_say() -> None:
    """With every sub-layer's output zero, all but post pass x on, and post normalises it."""
    for placement, expected in (("pre", 1.0), ("sandwich", 1.0), ("after", 1.0), ("post", 2.0)):
        model = model_of(norm={"placement": placement}, init={"std": 1.0, "output": "zero"})
        params = parameters(model)
        if placement == "post":  # double the last norm's scale, to see that it comes last
            params["stack"]["tail"]["layer_0"]["ffn_norm"]["scale"] *= 2
        hidden = jax.jit(partial(model.apply, method="hidden"))
        x, _, _ = hidden({"params": params}, TOKENS)
        root_mean_square = np.sqrt(np.mean(np.square(x), axis=-1))
        np.testing.assert_allclose(root_mean_square, expected, rtol=1e-5)


def test_a_norm_after_a_sub_layer_decides_the_size_of_what_it_adds() -> None:
    model = model_of(norm={"placement": "after", "eps": 1e-12})
    params = parameters(model)
    doubled = jax.tree.map(lambda leaf: leaf, params)
    for part in ("mixer", "ffn"):
        kernel = doubled["stack"]["tail"]["layer_0"][part]["output" if part == "mixer" else "out"]
        kernel["kernel"] = kernel["kernel"] * 2
    np.testing.assert_allclose(logits(model, doubled), logits(model, params), rtol=1e-6)


def test_the_loss_is_that_of_the_logits() -> None:
    model = model_of(logit_softcap=2.0, tie_embeddings=False)
    params = parameters(model)
    targets = np.roll(TOKENS, -1, axis=1)
    mask = np.arange(20).reshape(2, 10) % 3 > 0
    positions = np.broadcast_to(np.arange(10), TOKENS.shape)
    ones = np.ones_like(TOKENS)
    loss = jax.jit(partial(model.apply, method="loss"))
    sums, _ = loss({"params": params}, TOKENS, targets, positions, ones, mask)
    log_probabilities = jax.nn.log_softmax(logits(model, params))
    picked = np.take_along_axis(np.asarray(log_probabilities), targets[..., None], -1)[..., 0]
    assert float(sums.loss) == pytest.approx(-picked[mask].sum(), rel=1e-6)
    assert float(sums.tokens) == mask.sum()


def test_activations_of_a_bfloat16_model_are_bfloat16_and_its_parameters_float32() -> None:
    with jax.enable_x64(False):
        model = model_of().clone(dtype=jnp.bfloat16)
        params = meta.unbox(abstract_parameters(model))
        x, _, _ = jax.eval_shape(partial(model.apply, method="hidden"), {"params": params}, TOKENS)
        assert x.dtype == jnp.bfloat16
        assert jax.eval_shape(model.apply, {"params": params}, TOKENS).dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_every_parameter_has_logical_axes() -> None:
    known = {name for name, _ in RULES}
    for positions in ({}, {"kind": "learned", "max_length": 10}, {"kind": "relative"}):
        options = {"positions": positions} if positions else {}
        boxed = abstract_parameters(model_of(**options))
        for leaf in jax.tree.leaves(boxed, is_leaf=lambda leaf: isinstance(leaf, meta.Partitioned)):
            assert isinstance(leaf, meta.Partitioned)
            assert len(leaf.names) == leaf.value.ndim and set(leaf.names) <= known


def test_flops_are_those_of_the_matrices_and_of_attention() -> None:
    """Two per weight and token, embeddings as the head, and 4 · features · keys of attention."""
    model = model_of(pattern=[{}], mixer={"kind": "attention", "num_heads": 2})
    matrices = 5 * (4 * 8 * 8 + 3 * 8 * 12) + 8 * VOCAB
    assert flops_per_token(model, 11) == 2 * matrices + 5 * 4 * 8 * 6  # six keys on average


def test_cache_bytes_are_those_of_the_caches() -> None:
    model = model_of()
    caches = jax.eval_shape(lambda: model.init_cache(3, 10))
    arrays = jax.tree.leaves(caches)
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in arrays) == 3 * cache_bytes(model, 10)
