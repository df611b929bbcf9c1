"""Experts that choose tokens, and experts fixed by a token's id, against loops over tokens."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from pydantic import ValidationError

from jaxformer.config import Config
from jaxformer.model.channel_mixers import build_channel_mixer
from jaxformer.model.channel_mixers.moe import MoE, MoEConfig
from jaxformer.model.channel_mixers.router import hashed_experts
from jaxformer.model.dims import Dims, InitConfig
from jaxformer.model.rows import LayerAux, RowInfo

WIDTH, HIDDEN, EXPERTS, LENGTH = 6, 5, 4, 7
SEGMENTS = jnp.asarray([[1, 1, 2, 2, 2, 2, 2], [1, 2, 2, 2, 2, 0, 0]])
TOKENS = jnp.asarray([[3, 1, 3, 8, 1, 0, 9], [9, 9, 2, 4, 1, 0, 0]])
REAL = np.asarray(SEGMENTS).reshape(-1) != 0
X = np.random.default_rng(0).normal(size=(14, WIDTH))
WEIGHTS = np.random.default_rng(1).normal(size=(14, WIDTH))
TRAINING = {"depth": jax.random.key(0)}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def layer_of(**options: object) -> MoE:
    sizes = {"kind": "moe", "num_experts": EXPERTS, "experts_per_token": 2, "d_hidden": HIDDEN}
    config = MoEConfig.model_validate(sizes | options)
    return build_channel_mixer(config, Dims(WIDTH, 2, InitConfig(std=0.5), jnp.float64))


def parameters(layer: MoE) -> dict:
    rows = RowInfo(SEGMENTS, SEGMENTS, tokens=TOKENS)
    params = meta.unbox(layer.init(jax.random.key(0), jnp.asarray(X), rows)["params"])
    random = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), params)


def apply(layer: MoE, params: dict, x: jax.Array, rngs: dict | None = None) -> tuple:
    rows = RowInfo(SEGMENTS, SEGMENTS, tokens=TOKENS)
    return jax.jit(layer.apply)({"params": params}, jnp.asarray(x), rows, rngs=rngs)


def scores_of(params: dict, x: jax.Array) -> jax.Array:
    return jax.nn.softmax(x @ params["router"]["kernel"])


def visited(layer: MoE, params: dict, x: jax.Array, visits: list[set[int]]) -> jax.Array:
    """Every token computed by the experts that it visits, one at a time."""
    scores, ys = scores_of(params, x), []
    for token, experts in enumerate(visits):
        total = sum(scores[token, e] for e in experts) if layer.config.normalize else 1.0
        y = jnp.zeros(WIDTH)
        for e in experts:
            own = {name: params[f"experts_{name}"]["kernel"][e] for name in ("in", "gate", "out")}
            made = (jax.nn.silu(x[token] @ own["gate"]) * (x[token] @ own["in"])) @ own["out"]
            y += scores[token, e] / total * made
        ys.append(y)
    return jnp.stack(ys)


def taken(scores: np.ndarray, most: int) -> list[set[int]]:
    """The experts that take each token: each expert takes the `most` best tokens per row."""
    visits: list[set[int]] = [set() for _ in scores]
    for row in range(2):
        places = [row * LENGTH + t for t in range(LENGTH) if REAL[row * LENGTH + t]]
        for expert in range(EXPERTS):
            for token in sorted(places, key=lambda t: -scores[t, expert])[:most]:
                visits[token].add(expert)
    return visits


@pytest.mark.parametrize(
    "options",
    [{}, {"predictor_weight": 0.3}, {"normalize": False, "capacity_factor": 0.5}],
    ids=["plain", "with a predictor", "half as many, not normalised"],
)
def test_experts_take_their_best_tokens_of_each_row(options: dict) -> None:
    layer = layer_of(routing="expert_choice", **options)
    params, weight = parameters(layer), options.get("predictor_weight", 0.0)
    most = math.ceil(LENGTH * 2 * options.get("capacity_factor", 1.0) / EXPERTS)
    visits = taken(np.asarray(scores_of(params, X)), most)
    by = np.array([[expert in each for expert in range(EXPERTS)] for each in visits])

    def ours(params: dict, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, LayerAux]]:
        y, aux = apply(layer, params, x, TRAINING)
        loss = 0.0 if aux.loss is None else aux.loss
        return jnp.sum(jnp.where(REAL[:, None], WEIGHTS * y, 0)) + loss, (y, aux)

    def defined(params: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, loss = visited(layer, params, x, visits), 0.0
        if weight:
            router = params["router"]
            p = jax.lax.stop_gradient(x) @ router["predictor"] + router["predictor_bias"]
            losses = -jnp.where(by, jax.nn.log_sigmoid(p), jax.nn.log_sigmoid(-p))
            loss = weight * jnp.sum(jnp.mean(losses, 1)[REAL])
        return jnp.sum(jnp.where(REAL[:, None], WEIGHTS * y, 0)) + loss, y

    of = (
        jax.value_and_grad(f, (0, 1), has_aux=True)(params, jnp.asarray(X)) for f in (ours, defined)
    )
    ((value, (y, aux)), gradient), ((expected, wanted), wanted_gradient) = of
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(y[REAL], wanted[REAL], rtol=0, atol=1e-10)
    for ours_leaf, leaf in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(wanted_gradient), strict=True
    ):
        np.testing.assert_allclose(ours_leaf, leaf, rtol=0, atol=1e-10)
    assert aux.stats["expert_load"].tolist() == by.sum(0).tolist() == [2 * most] * EXPERTS
    assert float(aux.stats["unvisited"]) == np.sum(REAL & ~by.any(1))


def test_a_predictor_chooses_outside_of_training_from_the_token_alone() -> None:
    layer = layer_of(
        routing="expert_choice", predictor_weight=0.1, experts_per_token=1, normalize=False
    )
    params = parameters(layer)
    router = params["router"]
    p = X @ router["predictor"] + router["predictor_bias"]
    # At most twice `experts_per_token`, the likeliest.
    visits = [
        {int(e) for e in np.argsort(-p[t])[:2] if p[t, e] > 0} if REAL[t] else set()
        for t in range(14)
    ]
    assert {0, 1, 2} == {len(each) for each in visits}
    y, aux = apply(layer, params, X)
    np.testing.assert_allclose(y[REAL], visited(layer, params, X, visits)[REAL], atol=1e-10)
    assert aux.loss is None
    changed, _ = apply(layer, params, jnp.asarray(X).at[4].set(3.0))
    np.testing.assert_array_equal(np.delete(changed, 4, 0), np.delete(y, 4, 0))


def test_experts_fixed_by_an_id_are_the_same_everywhere_and_the_router_gives_their_gates() -> None:
    layer = layer_of(routing="hash")
    params = parameters(layer)
    chosen = np.asarray(hashed_experts(jnp.arange(10), EXPERTS, 2))
    visits = [
        set(map(int, chosen[t])) if r else set()
        for t, r in zip(TOKENS.reshape(-1), REAL, strict=True)
    ]
    y, aux = apply(layer, params, X)
    np.testing.assert_allclose(y[REAL], visited(layer, params, X, visits)[REAL], atol=1e-10)
    load = [sum(expert in each for each in visits) for expert in range(EXPERTS)]
    assert aux.stats["expert_load"].tolist() == load


@pytest.mark.parametrize(("experts", "chosen"), [(64, 6), (60, 4), (7, 7)])
def test_hashes_spread_ids_over_experts_which_are_all_different(experts: int, chosen: int) -> None:
    found = np.asarray(hashed_experts(jnp.arange(20_000), experts, chosen))
    assert all(len(set(row)) == chosen for row in found[:1000])
    load = np.bincount(found.reshape(-1), minlength=experts) / (20_000 * chosen / experts)
    assert np.abs(load - 1).max() < 0.12  # four deviations of a uniform draw
    assert len({tuple(row) for row in found}) > min(1000, experts * (experts - 1) // 4)


OUTER = [{"mixer": {"kind": "min_gru"}, "ffn": None}]
CHOICE = {"routing": "expert_choice"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predictor_weight": 0.1}, "predictor_weight is given with routing token_choice"),
        (CHOICE | {"balance": {"bias_rate": 0.1}}, "balance is given with routing expert_choice"),
        ({"routing": "hash", "balance": {"auxiliary": 0.1}}, "balance is given with routing hash"),
        (CHOICE | {"groups": 2}, "groups is given with routing expert_choice"),
        (CHOICE | {"capacity_factor": 2.5}, "more tokens than a row has; allowed: up to num_exp"),
        (CHOICE | {"balance": {"z_loss": 0.1}}, "z_loss is given with routing expert_choice"),
    ],
)
def test_options_without_a_choice_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        layer_of(**options)


def config_with(ffn: dict, **model: object) -> dict:
    sizes = {"kind": "moe", "num_experts": 4, "experts_per_token": 2, "d_hidden": 4}
    shape = {"d_model": 8, "num_layers": 2, "mixer": {"kind": "attention", "num_heads": 2}}
    return {"model": shape | {"ffn": sizes | ffn} | model}


def test_a_causal_model_needs_a_predictor_of_what_experts_choose() -> None:
    with pytest.raises(ValidationError, match="predictions of train.objective next_token must not"):
        Config.model_validate(config_with(CHOICE))
    assert Config.model_validate(config_with(CHOICE | {"predictor_weight": 0.1})).keys == ("depth",)
    denoised = config_with(CHOICE, inputs={"kind": "tokens", "mask": True})
    denoised["train"] = {"objective": {"kind": "masked_diffusion"}}
    assert not Config.model_validate(denoised).model.ffns()[0].is_causal
    for kind in ("block_diffusion", "any_order"):  # which may not see all of a row at once
        denoised["train"] = {"objective": {"kind": kind}}
        with pytest.raises(ValidationError, match=f"train.objective {kind} must not"):
            Config.model_validate(denoised)


@pytest.mark.parametrize(
    "model",
    [
        {"inputs": {"kind": "chunks", "encoder": OUTER, "decoder": OUTER}},
        {"further": {"kind": "modules"}},
    ],
    ids=["chunks", "further"],
)
def test_layers_that_do_not_see_tokens_have_no_experts_by_their_ids(model: dict) -> None:
    with pytest.raises(ValidationError, match="routing hash, which goes by the tokens' ids"):
        Config.model_validate(config_with({"routing": "hash"}, **model))
