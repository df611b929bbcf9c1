"""Norms: their kinds, where they stand, and what matrices start at."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from pydantic import ValidationError

from jaxformer.model.channel_mixers.dense import Dense, DenseConfig
from jaxformer.model.config import ModelConfig
from jaxformer.model.dims import Dims, InitConfig
from jaxformer.model.norms import NORMS, Norm, NormConfig
from jaxformer.model.placements import PLACEMENTS
from jaxformer.model.rows import RowInfo
from tests.model.structure import (
    EPS,
    MODEL,
    SUBLAYERS,
    TOKENS,
    Params,
    assert_defined,
    logits,
    model_of,
    normed,
    parameters,
)

DEPTH = MODEL["num_layers"]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def joined(placement: str, x: jax.Array, own: Params, name: str, number: int) -> jax.Array:
    """A sub-layer of layer `number`, from 1, on the stream x."""

    def f(x: jax.Array) -> jax.Array:
        return SUBLAYERS[name](x, own[name])

    def norm(x: jax.Array, last: str = "norm") -> jax.Array:
        return normed(x, own[f"{name}_{last}"])

    match placement:
        case "none":
            return x + f(x)
        case "pre":
            return x + f(norm(x))
        case "post":
            return norm(x + f(x))
        case "sandwich":
            return x + norm(f(norm(x)), "norm_after")
        case "after":
            return x + norm(f(x))
        case "deepnorm":
            return norm((2 * DEPTH) ** 0.25 * x + f(x))
        case "lns":
            return x + f(norm(x) / math.sqrt(number))
        case "mixed":
            return norm(x + f(x)) if number <= DEPTH // 2 else x + f(norm(x))
    raise AssertionError(placement)


@pytest.mark.parametrize("placement", sorted(PLACEMENTS.keys() - {"sub"}))
def test_a_placement_is_its_equation(placement: str) -> None:
    """Outputs and gradients, with layers scanned."""

    def layers(x: jax.Array, each: list[Params]) -> jax.Array:
        for number, own in enumerate(each, start=1):
            for name in SUBLAYERS:
                x = joined(placement, x, own, name, number)
        return x

    norm = {"placement": placement} | ({"post_share": 0.5} if placement == "mixed" else {})
    has_final_norm = placement not in ("post", "deepnorm")
    assert_defined(model_of(norm=norm), layers, has_final_norm)


def test_sub_ln_normalises_what_output_matrices_read() -> None:
    model = model_of(norm={"placement": "sub"}, num_layers=2, pattern=[{"ffn": "none"}])
    params = parameters(model, spread=0.3)
    mixer = params["stack"]["groups"]["layer_0"]["mixer"]
    assert mixer["sub_norm"]["scale"].shape == (2, 6)  # of both heads together
    # A larger scale there is larger output matrices.
    plain = jax.tree.map(np.array, params)
    other = plain["stack"]["groups"]["layer_0"]["mixer"]
    other["sub_norm"]["scale"] = 3 * other["sub_norm"]["scale"]
    other["output"]["kernel"] = other["output"]["kernel"] / 3
    np.testing.assert_allclose(logits(model, plain), logits(model, params), rtol=0, atol=1e-12)
    # Larger values are the same.
    other["value"]["kernel"] = 100 * other["value"]["kernel"]
    np.testing.assert_allclose(logits(model, plain), logits(model, params), rtol=0, atol=1e-4)


def test_the_norm_inside_an_ffn_is_before_its_last_matrix() -> None:
    dims = Dims(6, 1, InitConfig(std=0.5), jnp.float64, sub_norm=NormConfig())
    ffn = Dense(DenseConfig(kind="swiglu", d_hidden=8), dims)
    x = np.random.default_rng(0).normal(size=(3, 6))
    rows = RowInfo(jnp.arange(3)[None], jnp.ones((1, 3), jnp.int32))
    own = meta.unbox(ffn.init(jax.random.key(0), x, rows)["params"])
    found, _ = ffn.apply({"params": own}, x, rows)
    hidden = jax.nn.silu(x @ own["gate"]["kernel"]) * (x @ own["in"]["kernel"])
    expected = normed(hidden, own["sub_norm"]) @ own["out"]["kernel"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_is_its_equation(kind: str, bias: bool) -> None:
    random = np.random.default_rng(0)
    x, scale, beta, alpha = (random.normal(size=shape) for shape in ((3, 6), 6, 6, ()))
    normal = {
        "rms": x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + EPS),
        "layer": (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPS),
        "dyt": np.tanh(alpha * x),
    }
    params = {"scale": scale} | ({"bias": beta} if bias else {})
    params |= {"alpha": alpha} if kind == "dyt" else {}
    norm = Norm(NormConfig(kind=kind, bias=bias))
    start = meta.unbox(norm.init(jax.random.key(0), x)["params"])
    assert start.keys() == params.keys() and start.get("alpha", 0.5) == 0.5
    found = norm.apply({"params": params}, x)
    expected = scale * normal[kind] + (beta if bias else 0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


def test_alpha_starts_otherwise_around_mixers() -> None:
    norm = {"kind": "dyt", "alpha": 0.2, "mixer_alpha": 0.8}
    params = parameters(model_of(norm=norm))
    layer = params["stack"]["groups"]["layer_0"]
    found = [layer["mixer_norm"]["alpha"], layer["ffn_norm"]["alpha"]]
    np.testing.assert_allclose(found, [[0.8] * DEPTH, [0.2] * DEPTH], rtol=1e-7)
    np.testing.assert_allclose(params["final_norm"]["alpha"], 0.2, rtol=1e-7)


def test_every_placement_is_allowed() -> None:
    allowed = NormConfig.model_json_schema()["properties"]["placement"]["enum"]
    assert set(allowed) == PLACEMENTS.keys()


@pytest.mark.parametrize(
    ("placement", "gain"),
    [
        ("deepnorm", (8 * DEPTH) ** -0.25),
        ("sub", math.sqrt(math.log(2 * DEPTH))),
        ("lns", None),
        ("pre", None),
    ],
)
def test_matrices_start_as_published(placement: str, gain: float | None) -> None:
    scaled = {"std": 0.5, "output": "scaled"}
    # Parameters of the same names are drawn with the same keys.
    plain, placed = (
        parameters(model_of(norm={"placement": which}, init=init))["stack"]["groups"]["layer_0"]
        for which, init in (("pre", MODEL["init"]), (placement, scaled))
    )
    of_outputs = {"lns": 1.0, "pre": 1 / math.sqrt(2 * DEPTH)}.get(placement, gain)
    gains = {
        ("mixer", "query"): 1.0,
        ("mixer", "key"): 1.0,
        ("mixer", "value"): gain or 1.0,
        ("mixer", "output"): of_outputs,
        ("ffn", "in"): gain or 1.0,
        ("ffn", "out"): of_outputs,
    }
    for (part, name), expected in gains.items():
        usual, found = (each[part][name]["kernel"] for each in (plain, placed))
        np.testing.assert_allclose(found, expected * usual, rtol=1e-5)
    assert model_of(norm={"placement": placement}).dims.init == InitConfig(**MODEL["init"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": {"alpha": 0.2}}, "alpha is 0.2, which is of no use with rms; give kind: dyt"),
        ({"norm": {"post_share": 0.5}}, "post_share is 0.5, .* with pre; give placement: mixed"),
        (
            {"norm": {"placement": "sub"}, "mixer": {"kind": "min_gru"}},
            "the mixer of layer 0, min_gru, has no place for it; allowed mixers: attention",
        ),
        (
            {"norm": {"placement": "sub"}, "num_layers": 1, "pattern": [{"ffn": "none"}]},
            "norm.placement is sub, whose start of matrices is 0 with a single mixer or FFN",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate(MODEL | options)


def test_constants_of_encoders_are_not_those_of_models_alone() -> None:
    encoder = MODEL | {"length": 4}
    del encoder["vocab_size"]
    pattern = [{"ffn": "none"}, {"mixer": {"kind": "cross_attention", "num_heads": 2}}]
    options = {"encoder": encoder, "pattern": pattern, "norm": {"placement": "deepnorm"}}
    with pytest.raises(ValidationError, match="deepnorm, which is here for models without an enc"):
        ModelConfig.model_validate(MODEL | options)


def test_a_row_of_zeros_has_a_finite_gradient() -> None:
    """With Mix-LN, both placements are computed in every layer."""
    model = model_of(norm={"placement": "mixed"})
    params = parameters(model)
    params["embedding"] = np.zeros_like(params["embedding"])
    run = jax.grad(lambda params: jnp.sum(model.apply({"params": params}, TOKENS) ** 2))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(run)(params)))
