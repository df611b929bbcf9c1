"""Loops against the same model written out, and what they share with every other model."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.products import product_flops
from pydantic import ValidationError

from jaxformer.model.accounting import cache_bytes, flops_per_token
from jaxformer.model.depth.loop import RandomTurns
from jaxformer.model.depth.stack import choose_rows
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.parameter_paths import by_path
from jaxformer.model.rows import RowInfo
from tests.model.depth.small import (
    LENGTH,
    MIXERS,
    ONES,
    POSITIONS,
    ROWS,
    TOKENS,
    assert_close,
    differentiated,
    hidden,
    in_pieces,
    loss_of,
    model_of,
    parameters,
    shapes,
)

KEY = jax.random.key(5)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def loop(turns: object = 2, **options: object) -> dict:
    return {"kind": "loop", "turns": turns} | options


HYBRID = {"pattern": [{}, {"mixer": {"kind": "min_gru"}}]}


def written_out(params: dict, turns: int) -> dict:
    """A loop of layer 0, (1, 2) in turns, layer 3 in a pattern of two → all layers it passes."""
    stack, tree = params["stack"], jax.tree.map
    before, after = stack["before"]["groups"]["layer_0"], stack["after"]["groups"]["layer_0"]
    shared = stack["shared"]["groups"]  # its first layer is the pattern's second
    even = tree(lambda a, b: jnp.concatenate([a, *[b] * turns]), before, shared["layer_1"])
    odd = tree(lambda a, b: jnp.concatenate([*[a] * turns, b]), shared["layer_0"], after)
    return params | {"stack": {"groups": {"layer_0": even, "layer_1": odd}}}


def test_turns_with_shared_layers_are_all_layers_written_out_and_tied_gradients_their_sum() -> None:
    for turns in (1, 3):
        model = model_of(loop(turns, before=1, after=1), num_layers=4, **HYBRID)
        params = parameters(model)
        plain = model_of({"kind": "fixed"}, num_layers=2 + 2 * turns, **HYBRID)
        value, gradients = differentiated(model, params)
        expected, pull = jax.jit(
            lambda p, n=turns, m=plain: jax.vjp(lambda q: loss_of(m, written_out(q, n)), p)
        )(params)
        assert value == pytest.approx(float(expected), rel=1e-12)
        assert_close(gradients, pull(jnp.ones_like(expected))[0])


def test_the_parts_have_their_own_parameters_and_the_numbers_of_their_layers() -> None:
    model = model_of(loop(before=1, after=2), num_layers=6, **HYBRID)
    config, paths = model.config, by_path(shapes(model))
    parts = {"/".join(path.split("/")[1:4]) for path in paths if path.startswith("stack/")}
    numbers = {part: list(config.layers_of_path(f"stack/{part}/mixer")) for part in sorted(parts)}
    assert numbers == {
        "after/groups/layer_0": [4],
        "after/groups/layer_1": [5],
        "before/groups/layer_0": [0],
        "shared/groups/layer_0": [1],
        "shared/groups/layer_1": [2],
        "shared/tail/layer_0": [3],
    }
    assert config.layers_of_path("stack/inject") is None
    assert all(leaf.shape[0] == 1 for path, leaf in paths.items() if "groups" in path)


def by_hand(model: LanguageModel, params: dict, turns: int, backward: int) -> jax.Array:
    """Σ hidden² of a loop that injects through a matrix, with the gradient cut by hand."""
    stack, depth = params["stack"], model.depth(parent=None)
    rows = RowInfo(POSITIONS, ONES)
    e = params["embedding"][TOKENS]
    e, _, _ = depth._stack("before", parent=None).apply({"params": stack["before"]}, e, rows)
    state, kernel = e, stack["inject"]
    for number in range(turns):
        if number == turns - backward:
            state = jax.lax.stop_gradient(state)
        x = jnp.concatenate([state, e], axis=-1) @ kernel.reshape(-1, kernel.shape[-1])
        state, _, _ = depth._stack("shared", parent=None).apply(
            {"params": stack["shared"]}, x, rows
        )
    square = jnp.mean(state**2, axis=-1, keepdims=True)
    return jnp.sum((state / jnp.sqrt(square + 1e-6) * params["final_norm"]["scale"]) ** 3)


def test_a_truncated_gradient_is_that_of_a_state_whose_gradient_is_stopped() -> None:
    def cubes(model: LanguageModel, params: dict) -> jax.Array:
        return jnp.sum(model.apply({"params": params}, *rows, method="hidden")[0] ** 3)

    rows = (TOKENS, POSITIONS, ONES)
    model = model_of(loop(3, before=1, inject="concat", backward=2))
    params = parameters(model)
    ours, theirs = jax.jit(
        lambda p: (
            jax.value_and_grad(lambda q: cubes(model, q))(p),
            jax.value_and_grad(lambda q: by_hand(model, q, 3, 2))(p),
        )
    )(params)
    assert_close(ours, theirs)
    whole = model_of(loop(3, before=1, inject="concat"))
    gradient = jax.jit(jax.grad(lambda p: cubes(whole, p)))(params)
    assert jnp.abs(gradient["stack"]["inject"] - ours[1]["stack"]["inject"]).max() > 1e-3


def test_random_turns_follow_their_law() -> None:
    """Its mean, and its variance λ + λ² (e^{σ²} − 1) for λ = mean − 1."""
    draws = jax.jit(jax.vmap(RandomTurns(mean=5.0, most=100).draw))
    found = np.asarray(draws(jax.random.split(KEY, 40_000)))
    variance = 4 + 16 * (np.exp(0.25) - 1)
    assert found.min() == 1
    assert found.mean() == pytest.approx(5.0, abs=4 * np.sqrt(variance / 40_000))
    assert found.var() == pytest.approx(variance, rel=0.05)
    short = jax.vmap(RandomTurns(mean=5.0, most=6).draw)(jax.random.split(KEY, 40_000))
    np.testing.assert_array_equal(short, np.minimum(found, 6))


@pytest.mark.parametrize("backward", [None, 2])
def test_a_step_with_random_turns_is_one_with_the_number_that_was_drawn(backward) -> None:
    options = {"before": 1, "inject": "add", "backward": backward}
    model = model_of(loop({"mean": 2.5, "most": 4}, **options))
    params = parameters(model)

    def value(p: dict, key: jax.Array) -> tuple:
        sums, aux = model.apply({"params": p}, *ROWS, method="loss", rngs={"depth": key})
        return sums.loss, aux.stats["turns"]

    step = jax.jit(jax.value_and_grad(value, has_aux=True))
    seen = set()
    for seed in range(12):
        (total, turns), gradients = step(params, jax.random.key(seed))
        assert np.isnan(turns[0])  # layer 0 is not in the loop
        number = int(turns[1]) // TOKENS.size
        if number in seen:
            continue
        seen.add(number)
        few = {"backward": backward if number > 2 else None}
        fixed = model_of(loop(number, **options | few))
        expected, theirs = jax.jit(
            jax.value_and_grad(
                lambda p, m=fixed: m.apply({"params": p}, *ROWS, method="loss")[0].loss
            )
        )(params)
        assert total == pytest.approx(float(expected), rel=1e-12)
        if number >= 2 or backward is None:
            assert_close(gradients, theirs)
    assert len(seen) >= 3
    three = model_of(loop(3, before=1, inject="add"))  # 2.5 is rounded outside of training
    np.testing.assert_array_equal(hidden(model, params), hidden(three, params))


def test_noise_is_where_training_starts_and_zero_where_anything_else_does() -> None:
    model = model_of(loop(1, inject="add", noise=2.0))
    params = parameters(model)
    np.testing.assert_allclose(
        hidden(model, params), hidden(model_of(loop(1)), params), rtol=0, atol=1e-12
    )
    loss = jax.jit(partial(loss_of, model))
    one, other = (loss(params, jax.random.key(seed)) for seed in (0, 1))
    assert abs(one - other) > 1e-3
    # The start of a loop whose layers do nothing is its state.
    idle = model_of(
        loop(1, inject="add", noise=2.0),
        d_model=4096,
        pattern=[{"mixer": "none", "ffn": "none"}],
        norm={"placement": "post"},
    )
    table = jnp.zeros((7, 4096))
    variables = {"params": {"embedding": table}}
    state, _, _ = idle.apply(variables, TOKENS, method="hidden", rngs={"depth": KEY})
    assert float(jnp.std(state)) == pytest.approx(2.0, rel=0.02)


HALTINGS = {
    "none": {},
    "act": {"halting": {"kind": "act", "epsilon": 0.3}},
    "ponder": {"halting": {"kind": "ponder", "threshold": 0.6}},
}


@pytest.mark.parametrize("mixer", MIXERS)
def test_rows_in_pieces_are_whole_rows_with_and_without_halting(mixer: str) -> None:
    for halting in HALTINGS.values():
        model = model_of(loop(3, inject="add", **halting), mixer=MIXERS[mixer], num_layers=1)
        params = parameters(model)
        whole = hidden(model, params)
        for pieces, layout in ((([1] * LENGTH), "separate"), ([4, 2], "scanned")):
            assert_close(in_pieces(model, params, pieces, layout), whole)


def test_caches_of_turns_are_chosen_by_rows() -> None:
    model = model_of(loop(3, before=1), num_layers=3)
    for layout in ("scanned", "separate"):
        empty = model.clone(layout=layout).init_cache(2, LENGTH)
        full = jax.tree.map(jnp.ones_like, empty)
        chosen = choose_rows(jnp.array([True, False]), full, empty)
        for path, leaf in jax.tree.leaves_with_path(chosen):
            stacked = sum(getattr(key, "key", "") in ("groups", "turns") for key in path)
            rows = jnp.moveaxis(leaf, stacked, 0)
            assert jnp.all(rows[0] == 1) and not jnp.any(rows[1] == 1)


@pytest.mark.parametrize("halting", HALTINGS)
def test_tokens_see_their_own_document_up_to_themselves(halting: str) -> None:
    model = model_of(loop(3, before=1, **HALTINGS[halting]))
    params = parameters(model)
    whole = hidden(model, params)
    changed = TOKENS.copy()
    changed[:, 3] = (changed[:, 3] + 1) % 7
    after = hidden(model, params, changed)
    np.testing.assert_array_equal(after[:, :3], whole[:, :3])
    assert jnp.all(jnp.any(after[:, 3:] != whole[:, 3:], axis=-1))

    segments = np.array([[0, 0, 1, 1, 2, 2], [1, 1, 1, 2, 2, 0]])
    places = np.array([[0, 0, 0, 1, 0, 1], [0, 1, 2, 0, 1, 0]])
    packed = hidden(model, params, TOKENS, places, segments)
    alone = hidden(model, params, np.stack([np.roll(TOKENS[0], -2), np.roll(TOKENS[0], -4)]))
    assert_close(packed[0, 2:4], alone[0, :2])
    assert_close(packed[0, 4:6], alone[1, :2])
    assert_close(packed[1, :3], whole[1, :3])


def test_layouts_and_rematerialisation_change_no_gradient() -> None:
    model = model_of(loop(3, before=1, inject="concat", halting={"kind": "act"}))
    params = parameters(model)
    expected = differentiated(model, params, KEY)
    for changed in ({"remat": "full"}, {"layout": "unrolled", "remat": "dots"}):
        assert_close(differentiated(model.clone(**changed), params, KEY), expected)


def test_costs_are_those_of_the_layers_as_often_as_they_are_passed() -> None:
    """A block of queries meets the keys that any of them sees, all LENGTH here."""
    depth = loop(3, before=1, inject="concat", halting={"kind": "act"})
    model = model_of(depth, num_layers=3, mixer={"kind": "attention", "num_heads": 2})
    plain = model_of({"kind": "fixed"}, num_layers=7, mixer={"kind": "attention", "num_heads": 2})
    extra = 3 * (2 * 2 * 8 * 8 + 2 * 8)  # the injection's matrix, and the gate
    assert flops_per_token(model, 5) == flops_per_token(plain, 5) + extra
    assert cache_bytes(model, 5) == cache_bytes(plain, 5)
    arrays = jax.tree.leaves(jax.eval_shape(lambda: model.init_cache(3, 10)))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in arrays)
    assert held == 3 * cache_bytes(model, 10)

    params = shapes(model)
    program = jax.make_jaxpr(lambda p: model.apply({"params": p}, TOKENS))(params)
    unseen = 7 * 4 * 8 * (LENGTH - (LENGTH + 1) / 2)
    counted = product_flops(program.jaxpr) / TOKENS.size - unseen
    assert counted == flops_per_token(model, LENGTH)


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (loop(before=1, after=1), "leave none of num_layers 2 for the loop; allowed: up to 1"),
        (loop(2, backward=3, inject="add"), "backward 3 is above the 2 turns; allowed: up to 2"),
        (loop(2, backward=1), "backward 1 with inject none: no gradient would reach"),
        (loop(2, noise=1.0), "noise 1 with inject none: nothing of the input would enter"),
        (loop({"mean": 4.0, "most": 3}), "turns.most 3 is below turns.mean 4; raise it"),
        (
            loop({"mean": 2.0, "most": 3}, halting={"kind": "act"}),
            "halting act with random turns: tokens decide how many they make",
        ),
        (
            loop(3, backward=2, inject="add", halting={"kind": "act"}),
            "halting act with backward 2: the gradient flows through all turns",
        ),
        (
            loop(3, after=1, halting={"kind": "ponder"}),
            "halting ponder with after 1: .* allowed: after 0, or halting act",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_message(depth: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        model_of(depth)
    assert caught.value.error_count() == 1
