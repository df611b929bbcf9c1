"""Tokens that leave a loop, against loops over turns, layers and tokens written here."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.products import product_flops
from jax.nn import log_softmax, relu, sigmoid, softmax

from jaxformer.model.depth.halting import log_distribution, log_geometric
from tests.model.depth.small import (
    LENGTH,
    ONES,
    POSITIONS,
    ROWS,
    TARGETS,
    TOKENS,
    assert_close,
    in_pieces,
    model_of,
    parameters,
)

KEY = jax.random.key(5)
TURNS = 3
ONE_HEAD = {"mixer": {"kind": "attention", "num_heads": 1}, "positions": {"kind": "none"}}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def halting_model(**halting: object):
    return model_of({"kind": "loop", "turns": TURNS, "halting": halting}, **ONE_HEAD)


def rms(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x / jnp.sqrt(jnp.mean(x * x) + 1e-6) * scale


def one_turn(params: dict, states: list[jax.Array], moves: list[bool]) -> list[jax.Array]:
    """Both layers, a token at a time; a token that does not move is read as it is."""
    layers = params["stack"]["shared"]["groups"]["layer_0"]
    for number in range(2):
        layer = jax.tree.map(lambda leaf, n=number: leaf[n], layers)
        q, k, v, out = (
            layer["mixer"][name]["kernel"].reshape(8, 8)
            for name in ("query", "key", "value", "output")
        )
        read = [rms(state, layer["mixer_norm"]["scale"]) for state in states]
        states = list(states)
        for t in range(len(states)):
            if moves[t]:
                scores = [(read[t] @ q) @ (read[s] @ k) / math.sqrt(8) for s in range(t + 1)]
                shares = softmax(jnp.stack(scores))
                values = sum(shares[s] * (read[s] @ v) for s in range(t + 1))
                state = states[t] + values @ out
                wide = rms(state, layer["ffn_norm"]["scale"]) @ layer["ffn"]["in"]["kernel"]
                states[t] = state + relu(wide) ** 2 @ layer["ffn"]["out"]["kernel"]
    return states


def gate(params: dict, state: jax.Array) -> jax.Array:
    return sigmoid(state @ params["stack"]["halt"] + params["stack"]["halt_bias"][0])


def cross_entropy(params: dict, state: jax.Array, target: int) -> jax.Array:
    x = rms(state, params["final_norm"]["scale"])
    return -log_softmax(x @ params["embedding"].T)[target]


def adaptive(params: dict, epsilon: float, cost: float) -> tuple[jax.Array, list[int]]:
    """Σ cross-entropy + cost · (N + R) over all tokens, and the turns N of each."""
    total, made = jnp.zeros(()), []
    for row, targets in zip(TOKENS, TARGETS, strict=True):
        states = [params["embedding"][token] for token in row]
        moves, turns = [True] * LENGTH, [0] * LENGTH
        gone, outputs = [0.0] * LENGTH, [jnp.zeros(8)] * LENGTH
        for number in range(TURNS):
            states = one_turn(params, states, moves)
            for t in range(LENGTH):
                if not moves[t]:
                    continue
                turns[t] += 1
                p = gate(params, states[t])
                if gone[t] + p >= 1 - epsilon or number == TURNS - 1:
                    remainder = 1 - gone[t]
                    outputs[t] = outputs[t] + remainder * states[t]
                    total += cost * (turns[t] + remainder)
                    moves[t] = False
                else:
                    gone[t] = gone[t] + p
                    outputs[t] = outputs[t] + p * states[t]
        pairs = zip(outputs, targets, strict=True)
        total += sum(cross_entropy(params, x, target) for x, target in pairs)
        made += turns
    return total, made


def value_of(model, key=None):
    """params → (the loss that is minimized, statistics)."""

    def value(params: dict) -> tuple:
        rngs = {} if key is None else {"depth": key}
        sums, aux = model.apply({"params": params}, *ROWS, method="loss", rngs=rngs)
        return sums.loss + (0.0 if aux.loss is None else aux.loss), aux.stats

    return jax.jit(jax.value_and_grad(value, has_aux=True))


def test_adaptive_computation_time_is_the_papers_with_its_gradients() -> None:
    model = halting_model(kind="act", epsilon=0.3, cost=0.2)
    params = parameters(model)
    (value, stats), gradients = value_of(model, KEY)(params)
    (expected, turns), theirs = jax.value_and_grad(lambda p: adaptive(p, 0.3, 0.2), has_aux=True)(
        params
    )
    assert len(set(turns)) > 1  # tokens differ
    assert float(value) == pytest.approx(float(expected), rel=1e-12)
    assert_close(gradients, theirs)
    np.testing.assert_array_equal(stats["turns"], [sum(turns)] * 2)


def weighed(params: dict, regulariser) -> jax.Array:
    """Σ over tokens of Σ_n p_n L_n and the regulariser of p; nothing leaves."""
    total = jnp.zeros(())
    for row, targets in zip(TOKENS, TARGETS, strict=True):
        states = [params["embedding"][token] for token in row]
        every = []
        for _ in range(TURNS):
            states = one_turn(params, states, [True] * LENGTH)
            every.append(states)
        for t in range(LENGTH):
            left, p = 1.0, []
            for number in range(TURNS):
                rate = 1.0 if number == TURNS - 1 else gate(params, every[number][t])
                p.append(left * rate)
                left = left * (1 - rate)
            losses = [cross_entropy(params, states[t], targets[t]) for states in every]
            total += sum(a * b for a, b in zip(p, losses, strict=True)) + regulariser(p)
    return total


def divergence(p: list[jax.Array]) -> jax.Array:
    prior = [0.3, 0.7 * 0.3, 0.7 * 0.7]
    return 0.4 * sum(a * jnp.log(a / b) for a, b in zip(p, prior, strict=True))


def negative_entropy(p: list[jax.Array]) -> jax.Array:
    return 0.4 * sum(a * jnp.log(a) for a in p)


@pytest.mark.parametrize(
    ("halting", "regulariser"),
    [
        ({"kind": "ponder", "prior": 0.3, "weight": 0.4}, divergence),
        ({"kind": "exits", "weight": 0.4}, negative_entropy),
    ],
)
def test_losses_weighed_by_the_turn_of_leaving_are_the_papers(halting, regulariser) -> None:
    model = halting_model(**halting)
    params = parameters(model)
    (value, stats), gradients = value_of(model, KEY)(params)
    expected, theirs = jax.value_and_grad(lambda p: weighed(p, regulariser))(params)
    assert float(value) == pytest.approx(float(expected), rel=1e-12)
    assert_close(gradients, theirs)
    assert TOKENS.size < stats["turns"][0] < TURNS * TOKENS.size
    assert {"exit_1", "exit_2", "exit_3", "halting_loss", "turns"} == stats.keys()


def test_probabilities_of_leaving_sum_to_one() -> None:
    logits = 20 * jax.random.normal(KEY, (5, 100))
    np.testing.assert_allclose(jnp.sum(jnp.exp(log_distribution(logits)), axis=0), 1, atol=1e-14)
    assert float(jnp.sum(jnp.exp(log_geometric(0.3, 5)))) == pytest.approx(1, abs=1e-14)


def test_outside_of_training_a_token_leaves_where_the_threshold_is_reached() -> None:
    """And what comes out is the state after that turn; others see it at every later turn."""
    model = halting_model(kind="exits", threshold=0.7)
    params = parameters(model)
    rows = (TOKENS, POSITIONS, ONES)
    x, _, aux = jax.jit(lambda p: model.apply({"params": p}, *rows, method="hidden"))(params)
    expected, made = [], []
    for row in TOKENS:
        states = [params["embedding"][token] for token in row]
        moves, left, turns = [True] * LENGTH, [1.0] * LENGTH, [0] * LENGTH
        for _ in range(TURNS):
            states = one_turn(params, states, moves)
            for t in range(LENGTH):
                turns[t] += moves[t]
                left[t] = left[t] * (1 - gate(params, states[t])) if moves[t] else left[t]
                moves[t] = moves[t] and bool(1 - left[t] < 0.7)
        expected.append(jnp.stack([rms(x, params["final_norm"]["scale"]) for x in states]))
        made += turns
    assert len(set(made)) > 1
    assert_close(x, jnp.stack(expected))
    assert_close(in_pieces(model, params, [1] * LENGTH, "separate"), jnp.stack(expected))
    assert float(aux.stats["turns"][0]) == sum(made)


def test_a_turn_that_no_row_makes_runs_no_feed_forward_network_and_keeps_the_caches_right() -> None:
    """Of two rows that are the same, so that all rows leave together, some tokens early."""
    model = halting_model(kind="exits", threshold=0.5)
    params = parameters(model)
    params["stack"]["halt"] *= 20
    params["stack"]["halt_bias"] -= 20
    tokens = np.broadcast_to(TOKENS[:1], TOKENS.shape)
    rows = (tokens, POSITIONS, ONES)
    whole, _, aux = jax.jit(lambda p: model.apply({"params": p}, *rows, method="hidden"))(params)
    assert 2 * LENGTH < float(aux.stats["turns"][0]) < TURNS * 2 * LENGTH
    assert_close(in_pieces(model, params, [1] * LENGTH, "separate", tokens), whole)
    assert_close(in_pieces(model, params, [1] * LENGTH, "scanned", tokens), whole)

    def step(params: dict, cache: dict) -> jax.Array:
        rows = (TOKENS[:, :1], POSITIONS[:, :1], ONES[:, :1])
        return model.apply({"params": params}, *rows, cache=cache, method="hidden")[0]

    program = jax.make_jaxpr(step)(params, model.init_cache(2, LENGTH))
    [standing, moving] = [
        product_flops(branch.jaxpr)
        for scan in program.eqns
        if scan.primitive.name == "scan"
        for cond in scan.params["jaxpr"].eqns
        if cond.primitive.name == "cond"
        for branch in cond.params["branches"]
    ]
    networks, gates = 2 * 2 * 2 * 8 * 12, 2 * 8
    assert moving - standing == 2 * (networks + gates)  # of two tokens
