"""Exits below the last layer, and layers that training skips."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from jaxformer.model.accounting import cache_bytes, flops_per_token
from jaxformer.model.depth.exits import ExitsConfig, skip_rate
from tests.model.depth.small import (
    LENGTH,
    MIXERS,
    ROWS,
    TARGETS,
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
HYBRID = {"num_layers": 5, "pattern": [{}, {"mixer": {"kind": "min_gru"}}]}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def exits(**options: object) -> dict:
    return {"kind": "exits"} | options


def test_the_last_exit_is_the_plain_model_to_the_last_bit() -> None:
    model, plain = model_of(exits(), **HYBRID), model_of({"kind": "fixed"}, **HYBRID)
    params = parameters(plain)
    assert shapes(model) == shapes(plain)
    expected = hidden(plain, params)
    np.testing.assert_array_equal(hidden(model, params), expected)
    np.testing.assert_array_equal(hidden(model_of(exits(exit=3), **HYBRID), params), expected)


def test_an_exit_is_the_plain_model_of_the_layers_below_it() -> None:
    params = parameters(model_of(exits(), **HYBRID))
    for number in (1, 2):
        model = model_of(exits(exit=number), **HYBRID)
        short = {"num_layers": 2 * number}
        plain = model_of({"kind": "fixed"}, **HYBRID | short)
        groups = jax.tree.map(lambda leaf, n=number: leaf[:n], params["stack"]["groups"])
        below = params | {"stack": {"groups": groups}}
        assert_close(hidden(model, params), hidden(plain, below))
        assert_close(in_pieces(model, params, [1] * LENGTH, "separate"), hidden(plain, below))
        assert_close(in_pieces(model, params, [4, 2]), hidden(plain, below))
        assert flops_per_token(model, 5) == flops_per_token(plain, 5)
        assert cache_bytes(model, 5) == cache_bytes(plain, 5)


def test_the_loss_is_the_papers_weighted_mean_of_the_losses_of_all_exits() -> None:
    """With e = (0, .2, 2 + .2) for three exits: Σ_{j≤i} j is 0 and 1 below the last."""
    model = model_of(exits(layer_dropout=0.0, exit_scale=0.2), **HYBRID)
    assert ExitsConfig(exit_scale=0.2).loss_scales(3) == pytest.approx([0.0, 0.2, 2.2])
    params = parameters(model)

    def by_hand(params: dict) -> jax.Array:
        total = jnp.zeros(())
        for number, scale in ((1, 0.0), (2, 0.2), (3, 2.2)):
            below = model_of(exits(exit=number), **HYBRID)
            x, _, _ = below.apply({"params": params}, TOKENS, method="hidden")
            logits = x @ params["embedding"].T
            chosen = jnp.take_along_axis(logits, TARGETS[..., None], axis=-1)[..., 0]
            log_z = jax.nn.logsumexp(logits, axis=-1)
            total += scale / 2.4 * jnp.sum(log_z - chosen + 1e-3 * log_z**2)
        return total

    value, gradients = differentiated(model, params, KEY)
    expected, theirs = jax.jit(jax.value_and_grad(by_hand))(params)
    # The scales are float32.
    assert float(value) == pytest.approx(float(expected), rel=1e-7)
    assert_close(gradients, theirs, relative=1e-7)
    assert float(jax.jit(partial(loss_of, model))(params)) != pytest.approx(float(value), rel=1e-3)


def test_in_a_step_one_exit_in_so_many_has_a_loss_and_the_last_always() -> None:
    model = model_of(exits(layer_dropout=0.0, every=2), num_layers=4)
    params = parameters(model)

    @jax.jit
    def enabled(key: jax.Array) -> jax.Array:
        _, aux = model.apply({"params": params}, *ROWS, method="loss", rngs={"depth": key})
        return jnp.array([jnp.isfinite(aux.stats[f"exit_{n}"][0]) for n in range(1, 5)])

    found = {tuple(np.asarray(enabled(jax.random.key(seed))).tolist()) for seed in range(12)}
    assert found == {(True, False, True, True), (False, True, False, True)}


def test_rows_skip_layers_at_rates_that_rise_with_depth() -> None:
    """Of a model whose layers add one each: the stream tells how many a row has passed."""
    np.testing.assert_allclose(
        skip_rate(0.8, jnp.arange(4), 4), [0.8 * (2 ** (n / 3) - 1) for n in range(4)], rtol=1e-6
    )
    model = model_of(exits(layer_dropout=0.8), num_layers=4, norm={"placement": "post"})
    params = parameters(model)
    tokens = np.broadcast_to(TOKENS[:1], (2048, LENGTH))

    @jax.jit
    def states(key: jax.Array) -> jax.Array:
        variables = {"params": params}
        _, _, aux = model.apply(variables, tokens, method="hidden", rngs={"depth": key})
        below = params["embedding"][tokens][None]
        return jnp.concatenate([below, aux.exits.states])

    found = states(KEY)
    skipped = jnp.all(found[1:] == found[:-1], axis=(2, 3))  # [layers, rows]
    for layer, share in enumerate(np.asarray(jnp.mean(skipped, axis=1))):
        rate = 0.8 * (math.exp(layer * math.log(2) / 3) - 1)
        assert share == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / 2048))
    both = float(jnp.mean(skipped[2] & skipped[3]))  # independent of each other
    assert both == pytest.approx(0.8 * (2 ** (2 / 3) - 1) * 0.8, abs=0.05)


@pytest.mark.parametrize("mixer", MIXERS)
def test_rows_in_pieces_are_whole_rows(mixer: str) -> None:
    model = model_of(exits(), mixer=MIXERS[mixer])
    params = parameters(model)
    assert_close(in_pieces(model, params, [1] * LENGTH), hidden(model, params))


def test_layouts_and_rematerialisation_change_no_gradient() -> None:
    model = model_of(exits(layer_dropout=0.5), **HYBRID)
    params = parameters(model)
    expected = differentiated(model, params, KEY)
    for changed in ({"remat": "full"}, {"layout": "unrolled"}):
        assert_close(differentiated(model.clone(**changed), params, KEY), expected)


@pytest.mark.parametrize(
    ("depth", "options", "message"),
    [
        (exits(exit=3), {}, "depth.exit 3 is above the 2 exits .* allowed: 1 to 2, or null"),
        (exits(), {"num_layers": 1}, "depth exits needs at least 2 exits"),
    ],
)
def test_options_that_do_not_fit_are_refused(depth: dict, options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model_of(depth, **options)
