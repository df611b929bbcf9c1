"""Mixture-of-Depths against its equation, in training, in evaluation and from caches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.products import product_flops
from flax.core import meta
from model.depth.routed import (
    LENGTH,
    MIXERS,
    MODEL,
    ONES,
    ROW,
    TOKENS,
    TRAINING,
    assert_causal,
    assert_close,
    assert_continues,
    assert_documents_stand_alone,
    gradients,
    model_of,
    packed,
    parameters,
    step,
    whole,
)
from pydantic import ValidationError

from jaxformer.model.accounting import cache_bytes, flops_per_token, most_flops_per_token
from jaxformer.model.block import Block
from jaxformer.model.config import ModelConfig
from jaxformer.model.depth.routing import Router
from jaxformer.model.parameter_paths import by_path, from_paths
from jaxformer.model.rows import RowInfo
from jaxformer.ops.attention import Order


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def mixture(**options: object) -> dict:
    return {"kind": "mixture", "capacity": 0.4} | options


def without_routers(params: dict) -> dict:
    return from_paths({path: x for path, x in by_path(params).items() if "/routing/" not in path})


def test_capacity_1_with_gates_at_1_is_the_plain_model() -> None:
    """In outputs and gradients, for packed documents and padding; σ(50) is 1 in float64."""
    routed = model_of(depth=mixture(capacity=1.0))
    plain = model_of(pattern=[{}, {}])  # the same paths
    params = parameters(routed, bias=50.0)
    rows = (TOKENS, *packed())
    (loss, aux), gradient = gradients(routed, params, rows)
    (plain_loss, _), plain_gradient = gradients(plain, without_routers(params), rows)
    assert_close(loss, plain_loss)
    assert_close(without_routers(gradient), plain_gradient)
    np.testing.assert_array_equal(aux.stats["routed"], [np.nan, 18, np.nan])
    real = rows[2] > 0
    evaluated = whole(routed)(params, *rows)[real]
    assert_close(evaluated, whole(plain)(without_routers(params), *rows)[real])


def test_in_training_the_best_tokens_of_a_row_pass_as_a_shorter_row() -> None:
    """By the equation: x + σ(r) (block(x) − x) for the ⌈0.35 · 10⌉ = 4 tokens with the highest r,
    where one row has three real tokens alone."""
    model = model_of(num_layers=1, depth=mixture(capacity=0.35, every=1))
    depth, params = model.depth(parent=None), parameters(model)["stack"]
    segments = np.int32(np.arange(LENGTH) < [[LENGTH], [3]])
    x = np.random.default_rng(5).normal(size=(2, LENGTH, 8))
    train = partial(depth.apply, rngs=TRAINING)
    y, _, aux = jax.jit(train)({"params": params}, x, RowInfo(ROW, segments))

    of_layer = jax.tree.map(lambda leaf: leaf[0], params["groups"]["layer_0"])
    block = Block(depth.layers[0], depth.residual, depth.dims, parent=None)
    router = of_layer["routing"]["router"]
    for row, real in ((0, LENGTH), (1, 3)):
        scores = np.asarray(x[row, :real] @ router["weight"] + router["bias"])
        chosen = np.sort(np.argsort(-scores)[:4])
        picked, rows = x[row, chosen][None], RowInfo(chosen[None], np.ones_like(chosen[None]))
        made, _, _ = jax.jit(block.apply)({"params": of_layer}, picked, rows)
        gate, expected = 1 / (1 + np.exp(-scores[chosen])), x[row].copy()
        expected[chosen] += gate[:, None] * np.asarray(made - picked)[0]
        assert_close(y[row], expected)
    assert float(aux.stats["routed"][0]) == 4 + 3


def test_the_predictor_is_a_network_of_the_tokens_direction_that_learns_what_was_picked() -> None:
    """p = w · gelu(W x / rms(x) + c) + b picks where p > 0, and its loss is Σ BCE(σ(p), picked)."""
    dims = model_of().depth(parent=None).dims
    router, x = Router(dims, 0.4, 0.5), jax.random.normal(jax.random.key(2), (2, LENGTH, 8))
    candidates = np.arange(LENGTH) < [[LENGTH], [7]]
    params = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape, jnp.float64),
        meta.unbox(router.init(jax.random.key(0), x, candidates)["params"]),
    )
    hidden, output = params["predictor"]["hidden"], params["predictor"]["output"]
    unit = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    p = jax.nn.gelu(unit @ hidden["kernel"] + hidden["bias"]) @ output["weight"]
    output["bias"] = -jnp.median(p)  # so that it says both yes and no
    p += output["bias"]
    assert hidden["kernel"].shape == (8, 2)

    choice, learned = router.apply({"params": params}, x, candidates)
    assert learned is None
    np.testing.assert_array_equal(choice.picked, (p > 0) & candidates)
    assert 0 < jnp.sum(choice.picked) < jnp.sum(candidates)

    choice, learned = router.apply({"params": params}, x, candidates, rngs=TRAINING)
    np.testing.assert_array_equal(jnp.sum(choice.picked, axis=1), [4, 4])
    probability = jax.nn.sigmoid(p)
    losses = -jnp.log(jnp.where(choice.picked, probability, 1 - probability))
    assert_close(learned.loss, 0.5 * jnp.sum(losses[candidates]))
    np.testing.assert_array_equal(learned.right, choice.picked == ((p > 0) & candidates))


def test_the_loss_of_the_predictor_reaches_the_predictor_alone() -> None:
    model = model_of(depth=mixture(predictor_weight=0.5))
    params = parameters(model)

    def losses(params: dict) -> jax.Array:
        rows = (TOKENS, np.roll(TOKENS, -1, axis=1), ROW, ONES, ONES > 0)
        sums, aux = model.apply({"params": params}, *rows, method="loss", rngs=TRAINING)
        return jnp.stack([sums.loss, aux.loss])

    of_tokens, of_layers = (
        {path: bool(jnp.any(leaf[number] != 0)) for path, leaf in by_path(found).items()}
        for found in [jax.jit(jax.jacrev(losses))(params)]
        for number in range(2)
    )
    assert of_layers == {path: "/predictor/" in path for path in params_paths(params)}
    assert of_tokens == {path: "/predictor/" not in path for path in params_paths(params)}


def params_paths(params: dict) -> list[str]:
    return list(by_path(params))


@pytest.mark.parametrize("kind", MIXERS)
def test_from_caches_rows_are_the_same_whole_split_and_token_by_token(kind: str) -> None:
    model = model_of(mixer=MIXERS[kind], depth=mixture())
    params = parameters(model)
    assert_continues(model, params)
    assert_documents_stand_alone(model, params)


@pytest.mark.parametrize("kind", ["attention", "gated_delta"])
def test_evaluation_is_causal(kind: str) -> None:
    model = model_of(mixer=MIXERS[kind], depth=mixture())
    assert_causal(model, parameters(model))


def test_evaluation_routes_what_the_predictor_says_and_training_the_best() -> None:
    model = model_of(depth=mixture())
    params = parameters(model)

    def routed(**rngs: dict) -> jax.Array:
        hidden = partial(model.apply, method="hidden", **rngs)
        _, _, aux = jax.jit(hidden)({"params": params}, TOKENS, ROW, ONES)
        return aux.stats["routed"][1]

    assert routed(rngs=TRAINING) == 2 * 4
    assert 0 < routed() < 2 * LENGTH and routed() != 2 * 4


def test_a_token_that_is_not_routed_leaves_the_cache_of_its_layer_as_it_was() -> None:
    for mixer in (MIXERS["attention"], MIXERS["gated_delta"]):
        model = model_of(mixer=mixer, depth=mixture())
        params = parameters(model)
        predictor = params["stack"]["groups"]["layer_1"]["routing"]["predictor"]
        never = jax.tree.map(jnp.zeros_like, predictor)
        never["output"]["bias"] = jnp.full((1,), -1.0)
        params["stack"]["groups"]["layer_1"]["routing"]["predictor"] = never
        before = model.init_cache(2, LENGTH)
        _, after = step(model)(params, TOKENS[:, :5], ROW[:, :5], ONES[:, :5], before)
        dense, passed = after["groups"]
        jax.tree.map(np.testing.assert_array_equal, passed, before["groups"][1])
        changed = jax.tree.map(lambda a, b: jnp.any(a != b), dense, before["groups"][0])
        assert any(jax.tree.leaves(changed))


def test_an_order_of_tokens_is_not_for_caches() -> None:
    model = model_of(depth=mixture())
    order = Order(jnp.zeros((2, LENGTH), jnp.int32), jnp.zeros((2, LENGTH), bool))
    with pytest.raises(ValueError, match=r"rows.order cannot be given with a cache"):
        jax.eval_shape(
            lambda params: model.apply(
                {"params": params},
                *(TOKENS, ROW, ONES, order, model.init_cache(2, LENGTH)),
                method="hidden",
            ),
            parameters(model),
        )


def test_layouts_and_rematerialisation_agree() -> None:
    model = model_of(depth=mixture())
    params, rows = parameters(model), (TOKENS, *packed())
    expected = gradients(model, params, rows)
    assert_close(gradients(model.clone(layout="unrolled", remat="dots"), params, rows), expected)


def test_layers_are_routed_across_repetitions_of_a_pattern() -> None:
    """Three layers repeat with two: six, of which the second, fourth and sixth are routed."""
    pattern = [{}, {"mixer": {"kind": "min_gru"}}, {}]
    config = ModelConfig.model_validate(
        MODEL | {"num_layers": 7, "pattern": pattern, "depth": mixture()}
    )
    params = jax.eval_shape(
        model_of(num_layers=7, pattern=pattern, depth=mixture()).init, jax.random.key(0), TOKENS
    )["params"]["stack"]
    routed = [name for name, layer in params["groups"].items() if "routing" in layer]
    assert sorted(routed) == ["layer_1", "layer_3", "layer_5"] and set(params["tail"]) == {
        "layer_0"
    }
    path = "stack/{}/mixer/query/kernel"
    assert list(config.layers_of_path(path.format("groups/layer_3"))) == [3]
    assert config.layers_of_path(path.format("tail/layer_0")) == [6]


def test_flops_are_those_of_the_products_in_training() -> None:
    """But for the keys that a block of queries meets beyond those that each sees."""
    length, width = 128, 32
    sizes = {"d_model": width, "ffn": {"kind": "swiglu", "d_hidden": 48}}
    model = model_of(**sizes, depth=mixture(capacity=0.25)).clone(layout="unrolled")
    rows = [jnp.ones((1, length), jnp.int32)] * 3
    params = jax.eval_shape(model.init, jax.random.key(0), rows[0])["params"]

    def hidden(params: dict) -> jax.Array:
        return model.apply({"params": params}, *rows, method="hidden", rngs=TRAINING)[0]

    products = product_flops(jax.make_jaxpr(hidden)(params).jaxpr) / length
    stated = flops_per_token(model, length) - 2 * width * model.vocab_size
    # 64 queries in a block; two dense layers, and a quarter of the tokens in the routed one.
    met = (64 - 1) / 2 * 4 * width
    whole_rows = 2 * met + (32 - 1) / 2 * 4 * width / 4
    assert products - stated == pytest.approx(whole_rows, rel=1e-9)


def test_a_row_of_which_all_tokens_are_routed_costs_as_much_as_the_plain_model() -> None:
    routed, plain = model_of(depth=mixture()), model_of()
    assert cache_bytes(routed, 10) == cache_bytes(plain, 10)
    # A router of 8 weights; a predictor with a hidden width of 2.
    assert most_flops_per_token(routed, 10) == flops_per_token(plain, 10) + 2 * (8 + 8 * 2 + 2)


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        ({"capacity": 0.0}, "greater than 0"),
        ({"capacity": 1.5}, "less than or equal to 1"),
        ({"every": 4}, r"depth.every is 4, but num_layers is 3.*allowed: 1 to 3"),
    ],
)
def test_what_does_not_fit_is_refused(depth: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model_of(depth=mixture(**depth))
