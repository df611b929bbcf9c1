"""A mixture of experts against a loop over tokens, and what must not change it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.products import product_flops
from flax.core import meta
from pydantic import ValidationError

from jaxformer.model.channel_mixers import build_channel_mixer, moe
from jaxformer.model.channel_mixers.dense import ACTIVATIONS, Dense, DenseConfig
from jaxformer.model.channel_mixers.moe import MoE, MoEConfig
from jaxformer.model.config import ModelConfig
from jaxformer.model.dims import Dims, InitConfig
from jaxformer.model.language_model import build_model
from jaxformer.model.rows import LayerAux, RowInfo
from jaxformer.ops.routing import grouped_products

WIDTH, HIDDEN, EXPERTS = 6, 5, 8
SEGMENTS = jnp.asarray([[1, 1, 2, 2, 2], [1, 2, 2, 0, 0]])
X = np.random.default_rng(0).normal(size=(10, WIDTH))
WEIGHTS = np.random.default_rng(1).normal(size=(10, WIDTH))

CASES = {
    "softmax, not normalised": {"normalize": False},
    "sigmoid in groups, with biases": {
        "score": "sigmoid",
        "groups": 4,
        "kept_groups": 2,
        "group_score": "sum_of_two",
        "scale": 2.5,
        "balance": {"bias_rate": 0.1, "auxiliary": 0.3},
    },
    "best of groups": {
        "groups": 2,
        "kept_groups": 1,
        "balance": {"auxiliary": 0.3, "scope": "batch"},
    },
    "√softplus, shared with a gate": {
        "score": "sqrt_softplus",
        "shared": {"count": 2, "d_hidden": 3, "gate": True},
        "balance": {"z_loss": 0.2},
    },
    "biases, not gated": {"activation": "relu2", "bias": True, "router_bias": True},
    "limits of gpt-oss": {"activation": "quick_geglu", "bias": True, "clamp": 0.7},
    "one of many": {
        "experts_per_token": 1,
        "normalize": False,
        "activation": "geglu",
        "shared": {},
    },
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def config_of(**options: object) -> MoEConfig:
    sizes = {"num_experts": EXPERTS, "experts_per_token": 2, "d_hidden": HIDDEN}
    return MoEConfig.model_validate(sizes | options)


def layer_of(config: MoEConfig | DenseConfig) -> MoE | Dense:
    return build_channel_mixer(config, Dims(WIDTH, 2, InitConfig(std=0.5), jnp.float64))


def rows_of(segments: jax.Array) -> RowInfo:
    return RowInfo(jnp.zeros_like(segments), segments)


def parameters(layer: MoE | Dense) -> dict:
    """Drawn anew, so that biases are not zero."""
    params = meta.unbox(layer.init(jax.random.key(0), jnp.asarray(X), rows_of(SEGMENTS))["params"])
    random = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), params)


def apply(layer: MoE, params: dict, x: jax.Array, segments: jax.Array) -> tuple:
    return jax.jit(layer.apply)({"params": params}, jnp.asarray(x), rows_of(segments))


def choose(config: MoEConfig, logits: np.ndarray, biases: np.ndarray) -> list[int]:
    """The experts of one token."""
    score = {
        "softmax": lambda x: np.exp(x) / np.exp(x).sum(),
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
        "sqrt_softplus": lambda x: np.sqrt(np.log1p(np.exp(x))),
    }[config.score]
    preferred = score(logits) + biases
    groups = preferred.reshape(config.groups, -1)
    ranked = np.sort(groups, axis=1)[:, ::-1]
    values = ranked[:, 0] if config.group_score == "max" else ranked[:, :2].sum(1)
    kept = np.argsort(-values)[: config.kept_groups]
    allowed = [e for e in range(EXPERTS) if e // groups.shape[1] in kept]
    return sorted(allowed, key=lambda e: -preferred[e])[: config.experts_per_token]


def loop(config: MoEConfig, params: dict, x: jax.Array) -> tuple[jax.Array, dict]:
    """Outputs of all tokens, padding as zeros, and the sums of the losses, a token at a time."""
    segments = np.asarray(SEGMENTS).reshape(-1)
    rows = np.repeat([0, 1], 5)
    router = params["router"]
    logits = x @ router["kernel"] + router.get("bias", 0.0)
    biases = jax.lax.stop_gradient(router.get("selection_bias", jnp.zeros(EXPERTS)))
    chosen = [
        choose(config, np.asarray(row), np.asarray(biases)) for row in jax.lax.stop_gradient(logits)
    ]
    scores = {
        "softmax": lambda x: jax.nn.softmax(x),
        "sigmoid": lambda x: jax.nn.sigmoid(x),
        "sqrt_softplus": lambda x: jnp.sqrt(jax.nn.softplus(x)),
    }[config.score](logits)
    act = ACTIVATIONS[config.activation]

    def dense(weights: dict, x: jax.Array) -> jax.Array:
        def project(name: str, x: jax.Array) -> jax.Array:
            return x @ weights[name]["kernel"] + weights[name].get("bias", 0.0)

        hidden = project("in", x)
        if config.activation == "quick_geglu":
            gate = jnp.minimum(project("gate", x), config.clamp)
            hidden = jnp.maximum(jnp.minimum(hidden, config.clamp), -config.clamp)
            return project("out", gate / (1 + jnp.exp(-1.702 * gate)) * (hidden + 1))
        hidden = act(project("gate", x)) * hidden if "gate" in weights else act(hidden)
        return project("out", hidden)

    ys = []
    for token, experts in enumerate(chosen):
        total = sum(scores[token, e] for e in experts) if config.normalize else 1.0
        y = jnp.zeros(WIDTH)
        for e in experts if segments[token] else []:
            names = [name for name in ("in", "gate", "out") if f"experts_{name}" in params]
            own = {
                n: jax.tree.map(lambda leaf, e=e: leaf[e], params[f"experts_{n}"]) for n in names
            }
            y += config.scale * scores[token, e] / total * dense(own, x[token])
        if "shared" in params:
            gate = params.get("shared_gate")
            share = 1.0 if gate is None else jax.nn.sigmoid(x[token] @ gate["kernel"])
            y += share * dense(params["shared"], x[token])
        ys.append(y)
    weight = np.zeros((len(segments), EXPERTS))
    for token in np.flatnonzero(segments):
        same = (rows == rows[token]) & (segments == segments[token])
        mates = np.flatnonzero(same if config.balance.scope == "sequence" else segments)
        counts = [sum(e in chosen[mate] for mate in mates) for e in range(EXPERTS)]
        weight[token] = EXPERTS * np.asarray(counts) / (len(mates) * config.experts_per_token)
    shares = scores / scores.sum(1, keepdims=True)
    log_z = jax.nn.logsumexp(logits, axis=1)
    sums = {"balance": jnp.sum(weight * shares), "z": jnp.sum((segments != 0) * log_z**2)}
    return jnp.stack(ys), sums


def assert_trees_close(ours: dict, theirs: dict, atol: float = 1e-10) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, x), y in zip(
        jax.tree.flatten_with_path(ours)[0], jax.tree.leaves(theirs), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_outputs_losses_and_all_gradients_are_those_of_the_loop_over_tokens(options: dict) -> None:
    config = config_of(**options)
    layer = layer_of(config)
    params, real = parameters(layer), SEGMENTS.reshape(-1, 1) != 0
    losses = config.balance

    def ours(params: dict, x: jax.Array) -> tuple:
        y, aux = apply(layer, params, x, SEGMENTS)
        total = jnp.sum(jnp.where(real, WEIGHTS * y, 0))
        return total + (0.0 if aux.loss is None else aux.loss), (y, aux)

    def defined(params: dict, x: jax.Array) -> tuple:
        y, sums = loop(config, params, x)
        total = jnp.sum(jnp.where(real, WEIGHTS * y, 0))
        return total + losses.auxiliary * sums["balance"] + losses.z_loss * sums["z"], (y, sums)

    of = [
        jax.value_and_grad(f, (0, 1), has_aux=True)(params, jnp.asarray(X)) for f in (ours, defined)
    ]
    ((value, (y, aux)), gradient), ((expected, (wanted, sums)), wanted_gradient) = of
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-10)
    assert_trees_close({"y": jnp.where(real, y, 0)}, {"y": jnp.where(real, wanted, 0)})
    assert_trees_close(gradient, wanted_gradient)
    if losses.auxiliary:
        np.testing.assert_allclose(aux.stats["balance_loss"], sums["balance"], rtol=1e-6)
    assert float(jnp.sum(aux.stats["expert_load"])) == 8 * config.experts_per_token
    assert "selection_bias" not in params["router"] or not np.any(
        gradient[0]["router"]["selection_bias"]
    )


def test_a_softmax_normalised_over_the_chosen_is_a_softmax_of_the_chosen() -> None:
    layer = layer_of(config_of())
    params = parameters(layer)
    y, _ = apply(layer, params, X, SEGMENTS)
    logits = X @ params["router"]["kernel"]
    best, chosen = jax.lax.top_k(logits, 2)
    gates = jax.nn.softmax(best)  # top-k, then softmax, as gpt-oss has it
    expected = jnp.zeros_like(X)
    for expert in range(EXPERTS):
        own = {name: params[f"experts_{name}"]["kernel"][expert] for name in ("in", "gate", "out")}
        made = (jax.nn.silu(X @ own["gate"]) * (X @ own["in"])) @ own["out"]
        expected += jnp.sum(jnp.where(chosen == expert, gates, 0), 1, keepdims=True) * made
    real = SEGMENTS.reshape(-1, 1) != 0
    np.testing.assert_allclose(jnp.where(real, y - expected, 0), 0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_identical_experts_are_the_dense_ffn(score: str) -> None:
    dense = layer_of(DenseConfig(kind="swiglu", d_hidden=HIDDEN))
    own = parameters(dense)
    layer = layer_of(config_of(score=score, experts_per_token=3))
    params = {
        f"experts_{name}": {"kernel": jnp.stack([own[name]["kernel"]] * EXPERTS)} for name in own
    }
    params["router"] = parameters(layer)["router"]
    ones = jnp.ones_like(SEGMENTS)
    expected, _ = apply(dense, own, X, ones)
    np.testing.assert_allclose(apply(layer, params, X, ones)[0], expected, rtol=0, atol=1e-12)


PACKING = {"balance": {"auxiliary": 0.3, "z_loss": 0.1}, "score": "sigmoid"}


def alone(layer: MoE, params: dict) -> list[tuple[jax.Array, LayerAux, np.ndarray]]:
    """Every document as a row of its own."""
    found, segments = [], np.asarray(SEGMENTS)
    for row, document in ((0, 1), (0, 2), (1, 1), (1, 2)):
        places = row * 5 + np.flatnonzero(segments[row] == document)
        y, aux = apply(layer, params, X[places], jnp.ones((1, len(places)), int))
        found.append((y, aux, places))
    return found


def test_documents_in_a_row_are_each_as_if_alone_and_padding_counts_for_nothing() -> None:
    layer = layer_of(config_of(**PACKING))
    params = parameters(layer)
    y, aux = apply(layer, params, X, SEGMENTS)
    every = alone(layer, params)
    for own, _, places in every:
        np.testing.assert_allclose(y[places], own, rtol=0, atol=1e-13)
    np.testing.assert_allclose(aux.loss, sum(each.loss for _, each, _ in every), rtol=1e-6)
    summed = sum(each.stats["expert_load"] for _, each, _ in every)
    np.testing.assert_array_equal(aux.stats["expert_load"], summed)
    other = jnp.asarray(X).at[8:].set(7.0)
    again, same = apply(layer, params, other, SEGMENTS)
    np.testing.assert_array_equal(again[:8], y[:8])
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), same, aux))


def test_with_a_capacity_documents_in_a_row_compete_and_what_is_dropped_is_counted() -> None:
    """One expert takes all: of 5 · 2 assignments, ⌈0.5 · 10 / 8⌉ = 1 fits in each row."""
    layer = layer_of(config_of(capacity_factor=0.5))
    params = parameters(layer)
    params["router"]["kernel"] = jnp.zeros((WIDTH, EXPERTS))  # ties: experts 0 and 1
    y, aux = apply(layer, params, X, SEGMENTS)
    kept = np.any(np.asarray(y) != 0, axis=1)
    assert np.flatnonzero(kept).tolist() == [0, 5]  # the first token of each row
    assert float(aux.stats["dropped"]) == 8 - 2
    assert float(aux.stats["expert_load"][0]) == 8
    every = alone(layer, params)
    assert any(np.any(np.abs(y[places] - own) > 1e-3) for own, _, places in every)
    assert "depends on the rest of its row" in MoEConfig.model_fields["capacity_factor"].description


def test_what_a_product_leaves_in_rows_of_nobody_reaches_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kernels leave them unwritten, forward and backward: here they are infinite."""

    def poisoned(x: jax.Array, matrices: tuple, counts: jax.Array) -> tuple:
        nobody = (jnp.arange(len(x)) >= jnp.sum(counts))[:, None]

        @jax.custom_vjp
        def unwritten(y: jax.Array) -> jax.Array:
            return jnp.where(nobody, jnp.inf, y)

        unwritten.defvjp(lambda y: (unwritten(y), None), lambda _, dy: (unwritten(dy),))
        return tuple(map(unwritten, grouped_products(unwritten(x), matrices, counts)))

    layer = layer_of(config_of(bias=True, activation="quick_geglu"))
    params = parameters(layer)

    def loss(params: dict, x: jax.Array) -> jax.Array:
        y, _ = layer.apply({"params": params}, x, rows_of(SEGMENTS))
        return jnp.sum(WEIGHTS * y)

    expected = jax.value_and_grad(loss, (0, 1))(params, jnp.asarray(X))
    monkeypatch.setattr(moe, "grouped_products", poisoned)
    found = jax.value_and_grad(loss, (0, 1))(params, jnp.asarray(X))
    assert_trees_close({"all": found}, {"all": expected})


def test_jitter_is_in_training_alone() -> None:
    layer = layer_of(config_of(jitter=0.5))
    params = parameters(layer)
    y, _ = apply(layer, params, X, SEGMENTS)
    rngs = {"dropout": jax.random.key(0)}
    drawn, _ = layer.apply({"params": params}, jnp.asarray(X), rows_of(SEGMENTS), rngs=rngs)
    assert np.max(np.abs(drawn - y)) > 0.01
    assert config_of(jitter=0.5).keys == ("dropout",) and config_of().keys == ()


def test_flops_are_those_of_the_chosen_experts() -> None:
    """Those of experts are in blocks, whose number depends on the choice; see tests/ops."""
    layer, tokens = layer_of(config_of(shared={"count": 2, "gate": True})), 10
    params = parameters(layer)
    router = 2 * WIDTH * EXPERTS
    shared = 2 * 3 * WIDTH * 2 * HIDDEN + 2 * WIDTH
    chosen = 2 * 3 * WIDTH * 2 * HIDDEN
    assert layer.flops(tokens) == router + shared + chosen
    program = jax.make_jaxpr(lambda x: apply(layer, params, x, SEGMENTS)[0])(jnp.asarray(X))
    assert product_flops(program.jaxpr) == tokens * (router + shared)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts_per_token": 9}, "experts_per_token is 9, more than num_experts 8"),
        ({"experts_per_token": 1}, "the router would learn nothing of the tokens"),
        ({"groups": 3}, "groups is 3, which does not divide num_experts 8; allowed: 1, 2, 4, 8"),
        ({"kept_groups": 2}, "kept_groups is 2, more than groups 1"),
        ({"groups": 8}, "experts_per_token is 2, but kept_groups 1 have 1 experts"),
        (
            {"groups": 8, "kept_groups": 2, "group_score": "sum_of_two"},
            "group_score is sum_of_two, but a group has one expert",
        ),
    ],
)
def test_what_cannot_be_chosen_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValidationError) as error:
        config_of(**options)
    assert message in str(error.value)


MODEL = {
    "d_model": 8,
    "num_layers": 3,
    "vocab_size": 11,
    "mixer": {"kind": "attention", "num_heads": 2},
    "ffn": {"kind": "moe", "num_experts": 4, "experts_per_token": 2, "d_hidden": 4},
    "first": [{"ffn": {"kind": "swiglu", "d_hidden": 12}}],
    "pattern": [
        {
            "ffn": {
                "kind": "moe",
                "num_experts": 6,
                "experts_per_token": 1,
                "d_hidden": 4,
                "normalize": False,
            }
        },
        {},
    ],
}


def test_layers_with_other_experts_or_none_share_one_table_of_loads() -> None:
    """And cached = whole: one token after another, with the prompt in two pieces."""
    model = build_model(ModelConfig.model_validate(MODEL), dtype=jnp.float64)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 6)))
    params = meta.unbox(model.init(jax.random.key(0), tokens)["params"])
    params = jax.tree.map(lambda leaf: leaf * 20 if leaf.ndim > 2 else leaf, params)
    hidden = jax.jit(partial(model.apply, method="hidden"))
    whole, _, aux = hidden({"params": params}, tokens)
    load = np.asarray(aux.stats["expert_load"])
    assert load.shape == (3, 6)
    np.testing.assert_array_equal(np.nansum(load, 1), [0, 12, 24])
    assert np.isnan(load[2, 4:]).all() and np.isnan(load[0]).all()
    assert "expert_load" not in aux.over_layers()
    cache, made = model.init_cache(2, 6), []
    for first, last in ((0, 4), (4, 5), (5, 6)):
        places = jnp.broadcast_to(jnp.arange(first, last), (2, last - first))
        rows = (tokens[:, first:last], places, jnp.ones_like(places))
        x, cache, _ = hidden({"params": params}, *rows, cache=cache)
        made.append(x)
    np.testing.assert_allclose(jnp.concatenate(made, 1), whole, rtol=0, atol=1e-10)


def test_repeated_layers_without_experts_have_a_row_each_above_first_layers_with_some() -> None:
    dense, moe = {"kind": "gelu", "d_hidden": 4}, MODEL["ffn"]
    layers = {"ffn": dense, "first": [{"ffn": moe}], "pattern": [{}]}
    model = build_model(ModelConfig.model_validate(MODEL | layers), dtype=jnp.float64)
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = model.init(jax.random.key(0), tokens)["params"]
    _, _, aux = model.apply({"params": params}, tokens, method="hidden")
    load = np.asarray(aux.stats["expert_load"])
    assert load.shape == (3, 4) and np.isnan(load[1:]).all() and load[0].sum() == 4
    assert np.isnan(aux.stats["router_entropy"]).tolist() == [False, True, True]


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrt_softplus"])
def test_extreme_logits_have_finite_gates_and_gradients(score: str) -> None:
    layer = layer_of(config_of(score=score, balance={"auxiliary": 0.1, "z_loss": 0.1}))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters(layer))
    params["router"]["kernel"] *= 1e3

    def loss(params: dict, x: jax.Array) -> jax.Array:
        y, aux = layer.apply({"params": params}, x, rows_of(SEGMENTS))
        return jnp.sum(y) + aux.loss

    found = jax.value_and_grad(loss, (0, 1))(params, jnp.asarray(X, jnp.float32))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
