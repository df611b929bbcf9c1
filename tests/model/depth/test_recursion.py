"""Mixture-of-Recursions against its equation, in training, in evaluation and from caches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.products import product_flops
from model.depth.routed import (
    LENGTH,
    MIXERS,
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
    whole,
)
from pydantic import ValidationError

from jaxformer.model.accounting import cache_bytes, flops_per_token
from jaxformer.model.parameter_paths import by_path
from jaxformer.model.rows import RowInfo

ROUTINGS = ("expert_choice", "token_choice")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def recursion(**options: object) -> dict:
    return {"kind": "recursion", "turns": 2, **options}


def written_out(parts: dict) -> dict:
    """The shared layers twice, in a tree of plain layers."""
    order = [parts[name]["groups"]["layer_0"] for name in ("before", "shared", "shared", "after")]
    return {"groups": {"layer_0": jax.tree.map(lambda *each: jnp.concatenate(each), *order)}}


@pytest.mark.parametrize("routing", ROUTINGS)
def test_all_turns_with_gates_at_1_are_the_model_written_out_with_tied_weights(
    routing: str,
) -> None:
    """In outputs and gradients: that of a shared weight is the sum over its copies."""
    by_expert = routing == "expert_choice"
    shares = {"capacities": [1.0, 1.0]} if by_expert else {}
    routed = model_of(depth=recursion(routing=routing, **shares))
    plain = model_of(num_layers=4)
    params = parameters(routed, bias=50.0)
    if not by_expert:  # certain of two turns
        params["stack"]["router"]["bias"] = jnp.array([0.0, 100.0])
    tied = params | {"stack": written_out(params["stack"])}
    rows = (TOKENS, *packed())
    (loss, aux), gradient = gradients(routed, params, rows)
    (plain_loss, _), plain_gradient = gradients(plain, tied, rows)
    assert_close(loss, plain_loss)
    assert_close(gradient["embedding"], plain_gradient["embedding"])

    def of_layers(gradients: dict, part: str) -> dict:
        return gradients["stack"][part]["groups"]["layer_0"]

    copies = plain_gradient["stack"]["groups"]["layer_0"]
    for part, layers in (("before", [0]), ("shared", [1, 2]), ("after", [3])):
        summed = jax.tree.map(lambda leaf, at=layers: jnp.sum(leaf[jnp.array(at)], 0), copies)
        assert_close(jax.tree.map(lambda leaf: leaf[0], of_layers(gradient, part)), summed)
    np.testing.assert_array_equal(aux.stats["turns"], [np.nan, 2 * 18, np.nan])
    real = rows[2] > 0
    assert_close(whole(routed)(params, *rows)[real], whole(plain)(tied, *rows)[real])


def test_in_training_turns_take_fewer_and_fewer_of_a_rows_best_tokens() -> None:
    """By the equation, for shares 1, 0.7 and 0.3 of ten tokens."""
    model = model_of(depth=recursion(turns=3, capacities=[1.0, 0.7, 0.3]))
    depth, params = model.depth(parent=None), parameters(model)["stack"]
    x = np.random.default_rng(5).normal(size=(2, LENGTH, 8))
    train = partial(depth.apply, rngs=TRAINING)
    y, _, aux = jax.jit(train)({"params": params}, x, RowInfo(ROW, ONES))

    def through(part: str, x: np.ndarray, places: np.ndarray) -> np.ndarray:
        stack = depth._stack(part, parent=None)
        rows = RowInfo(places[None], np.ones((1, len(places)), np.int32))
        return np.array(jax.jit(stack.apply)({"params": params[part]}, x[None], rows)[0][0])

    for row in range(2):
        expected, left = through("before", x[row], np.arange(LENGTH)), np.arange(LENGTH)
        for turn, count in enumerate((10, 7, 3)):
            router = params[f"routing_{turn}"]["router"]
            scores = np.asarray(expected[left] @ router["weight"] + router["bias"])
            best = np.sort(np.argsort(-scores)[:count])
            left, gate = left[best], 1 / (1 + np.exp(-scores[best]))
            update = through("shared", expected[left], left) - expected[left]
            expected[left] += gate[:, None] * update
        assert_close(y[row], through("after", expected, np.arange(LENGTH)))
    np.testing.assert_array_equal(aux.stats["turns"], [np.nan, 2 * (10 + 7 + 3), np.nan])
    assert 0 < float(aux.stats["predicted"][1]) < 2 * LENGTH


def test_tokens_choose_their_turns_and_a_loss_balances_them() -> None:
    model = model_of(depth=recursion(turns=3, routing="token_choice", auxiliary_weight=0.5))
    depth, params = model.depth(parent=None), parameters(model)["stack"]
    x = np.random.default_rng(5).normal(size=(2, LENGTH, 8))
    _, segments = packed()
    train = partial(depth.apply, rngs=TRAINING)
    _, _, aux = jax.jit(train)({"params": params}, x, RowInfo(ROW, segments))

    before = depth._stack("before", parent=None)
    x, _, _ = jax.jit(before.apply)({"params": params["before"]}, x, RowInfo(ROW, segments))
    logits = x @ params["router"]["weight"] + params["router"]["bias"]
    probabilities = np.asarray(jax.nn.softmax(logits))
    turns, balance = 0, 0.0
    for row in range(2):
        p = probabilities[row, segments[row] > 0]
        chosen = np.argmax(p, axis=-1)
        turns += np.sum(chosen + 1)
        shares = np.bincount(chosen, minlength=3) / len(p)
        balance += 3 * len(p) * shares @ p.mean(axis=0)
    assert float(aux.stats["turns"][1]) == turns
    assert float(aux.loss) == pytest.approx(0.5 * balance, rel=1e-12)


@pytest.mark.parametrize(
    ("routing", "kind"),
    [
        ("expert_choice", "attention"),
        ("token_choice", "gated_delta"),
    ],
)
def test_rows_are_causal_and_the_same_whole_split_and_token_by_token(
    routing: str, kind: str
) -> None:
    model = model_of(mixer=MIXERS[kind], depth=recursion(routing=routing))
    params = parameters(model)
    assert_causal(model, params)
    assert_continues(model, params)
    assert_documents_stand_alone(model, params)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_the_loss_of_the_tokens_reaches_routers_and_no_predictor(routing: str) -> None:
    model = model_of(depth=recursion(routing=routing))
    params, rows = parameters(model), (TOKENS, ROW, ONES)
    (_, aux), gradient = gradients(model, params, rows)
    assert float(aux.loss) > 0
    reached = {path for path, leaf in by_path(gradient).items() if jnp.any(leaf != 0)}
    assert reached == {path for path in by_path(params) if "/predictor/" not in path}


def test_layouts_and_rematerialisation_agree() -> None:
    model = model_of(depth=recursion())
    params, rows = parameters(model), (TOKENS, *packed())
    expected = gradients(model, params, rows)
    assert_close(gradients(model.clone(layout="unrolled", remat="full"), params, rows), expected)


def test_parts_have_their_own_layers() -> None:
    """Seven layers of a pattern of two: two before, four shared, one after."""
    pattern = [{}, {"mixer": {"kind": "min_gru"}}]
    options = {"num_layers": 7, "pattern": pattern, "depth": recursion(before=2)}
    model = model_of(**options)
    params = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]["stack"]
    assert {part: sorted(params[part]["groups"]) for part in ("before", "shared", "after")} == {
        "before": ["layer_0", "layer_1"],
        "shared": ["layer_0", "layer_1"],
        "after": ["layer_0"],
    }
    of_path = model.config.layers_of_path
    assert list(of_path("stack/shared/groups/layer_1/ffn/in/kernel")) == [3, 5]
    assert list(of_path("stack/after/groups/layer_0/ffn/in/kernel")) == [6]
    assert of_path("stack/routing_0/router/weight") is None


def test_flops_are_those_of_the_products_in_training_and_every_turn_has_a_cache() -> None:
    length, width = 128, 32
    sizes = {"d_model": width, "ffn": {"kind": "swiglu", "d_hidden": 48}}
    depth = recursion(turns=3, capacities=[1.0, 0.5, 0.25])
    model = model_of(**sizes, depth=depth).clone(layout="unrolled")
    rows = [jnp.ones((1, length), jnp.int32)] * 3
    params = jax.eval_shape(model.init, jax.random.key(0), rows[0])["params"]

    def hidden(params: dict) -> jax.Array:
        return model.apply({"params": params}, *rows, method="hidden", rngs=TRAINING)[0]

    products = product_flops(jax.make_jaxpr(hidden)(params).jaxpr) / length
    stated = flops_per_token(model, length) - 2 * width * model.vocab_size
    # Keys that a block of 64 queries, or of all 32, meets beyond those that each sees.
    met = 63 / 2 * 4 * width
    assert products - stated == pytest.approx(3.5 * met + 31 / 2 * 4 * width / 4, rel=1e-9)
    assert cache_bytes(model, 9) == cache_bytes(model_of(**sizes, num_layers=5), 9)


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        ({"before": 2}, r"before 2 and depth.after 1 leave none of num_layers 3"),
        ({"capacities": [0.5, 0.0]}, "greater than 0"),
        ({"capacities": [0.5, 0.7]}, r"\[0.5, 0.7\], and one is above that of the turn before"),
        ({"capacities": [0.5]}, r"\[0.5\], 1 for turns 2; give one for each turn"),
        (
            {"capacities": [1.0, 0.5], "routing": "token_choice"},
            r"with routing token_choice every token chooses for itself; leave them out",
        ),
    ],
)
def test_what_does_not_fit_is_refused(depth: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model_of(depth=recursion(**depth))
