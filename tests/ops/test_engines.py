"""The chunked engines against their one-step forms in float64: outputs, states and gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jaxformer.ops.decay import State, decayed_products, running_total
from jaxformer.ops.decayed_outer_product import decayed_outer_product, past_outer_product
from jaxformer.ops.delta_rule import delta_rule, diagonal_plus_low_rank, two_key_delta_rule
from jaxformer.ops.diagonal import diagonal_recurrence
from jaxformer.ops.recurrent import token_by_token

BATCH, LENGTH, HEADS, KEY, VALUE = 2, 21, 2, 5, 3
# Documents that end inside a chunk of 8, at its end, and after one token; the first goes on from
# the state in the first row, and is another in the second.
SEGMENTS = np.array([[7] * 5 + [8] * 3 + [9] + [10] * 9 + [0] * 3, [1] * 16 + [2] * 5])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def inputs(decay: str, smallest: float, engine: str) -> tuple[tuple, State]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(BATCH, LENGTH, HEADS, *shape)))

    log_decay = smallest * rng.uniform(size=(BATCH, LENGTH, HEADS, KEY if decay == "key" else 1))
    log_decay[0, 3], log_decay[1, 7] = 0.0, smallest  # a token that keeps all, one that drops most
    unit = normal(KEY)
    unit /= jnp.linalg.norm(unit, axis=-1, keepdims=True)
    beta = jnp.asarray(rng.uniform(0, 2, size=(BATCH, LENGTH, HEADS)))
    given = {
        "decayed": (normal(KEY), normal(KEY), normal(VALUE)),
        "past": (normal(KEY), normal(KEY), normal(VALUE)),
        "delta": (normal(KEY), unit, normal(VALUE), beta),
        "two_keys": (normal(KEY), unit * beta[..., None], normal(VALUE), unit),
        "low_rank": (normal(KEY), normal(KEY), normal(VALUE), unit * beta[..., None], -unit),
    }[engine]
    memory = jnp.asarray(rng.normal(size=(BATCH, HEADS, KEY, VALUE)))
    return (*given, jnp.asarray(log_decay)), State(memory, jnp.array([7, 5]))


ENGINES: dict[str, Callable] = {
    "decayed": decayed_outer_product,
    "past": past_outer_product,
    "delta": delta_rule,
    "two_keys": two_key_delta_rule,
    "low_rank": diagonal_plus_low_rank,
}


@pytest.mark.parametrize("smallest", [-0.5, -20.0])
@pytest.mark.parametrize("decay", ["head", "key"])
@pytest.mark.parametrize("engine", ENGINES)
def test_chunks_equal_token_by_token(engine: str, decay: str, smallest: float) -> None:
    given, state = inputs(decay, smallest, engine)
    run, segments = ENGINES[engine], jnp.asarray(SEGMENTS)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, LENGTH, HEADS, VALUE)))

    def total(form: Callable, given: tuple, memory: jax.Array) -> tuple:
        o, last = form(given, State(memory, state.segment))
        return jnp.sum(o * weights) + jnp.sum(jnp.sin(last.memory)), (o, last)

    def in_pieces(chunk: int) -> Callable:
        return lambda given, state: run(*given, segments, state, chunk=chunk)

    def scanned(given: tuple, state: State) -> tuple[jax.Array, State]:
        return token_by_token(run, given, segments, state)

    def measure(form: Callable) -> tuple:
        graded = jax.value_and_grad(lambda g, m: total(form, g, m), (0, 1), has_aux=True)
        return jax.jit(graded)(given, state.memory)

    expected = measure(scanned)
    for chunk in (8, 32):
        for ours, theirs in zip(
            jax.tree.leaves(measure(in_pieces(chunk))), jax.tree.leaves(expected), strict=True
        ):
            atol = 1e-10 * max(1.0, float(jnp.max(jnp.abs(theirs))))
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_array_has_more_axes_than_a_cpus_products_take(engine: str) -> None:
    """XLA ends the process on a float32 product of eight axes, once it is large enough."""
    given, state = inputs("key", -0.5, engine)
    given = tuple(jnp.tile(x, (1, 4, *[1] * (x.ndim - 2)))[:, :64] for x in given)
    segments = jnp.ones((BATCH, 64), jnp.int32)

    def total(given: tuple) -> jax.Array:
        return jnp.sum(ENGINES[engine](*given, segments, state)[0])

    def axes(equations: list) -> int:
        within = [jaxpr for eqn in equations for jaxpr in jaxprs_in_params(eqn.params)]
        own = [len(getattr(out.aval, "shape", ())) for eqn in equations for out in eqn.outvars]
        return max([*own, *(axes(jaxpr.eqns) for jaxpr in within)], default=0)

    assert axes(jax.make_jaxpr(jax.grad(total))(given).eqns) <= 7


def test_a_strong_decay_leaves_pairs_before_it_bit_unchanged() -> None:
    """It takes another way through its chunk than a mild one."""
    rng = np.random.default_rng(3)
    x, y = (jnp.asarray(rng.normal(size=(1, 1, 1, 16, 4))) for _ in range(2))
    logs = jnp.asarray(-rng.uniform(size=x.shape))
    products = jax.jit(lambda logs: decayed_products(x, y, *2 * [running_total(logs)]))
    mild, strong = products(logs), products(logs.at[..., 12, 1].set(-100.0))
    np.testing.assert_array_equal(strong[..., :12, :12], mild[..., :12, :12])
    assert abs(strong - mild)[..., 12:, :12].max() > 0.1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_decay_of_nearly_nothing_stays_finite(engine: str) -> None:
    """e^{−1000} a step is zero in every float; so is its gradient, and neither is a nan."""
    given, state = inputs("key", -1000.0, engine)

    def total(given: tuple) -> jax.Array:
        o, last = ENGINES[engine](*given, jnp.asarray(SEGMENTS), state, chunk=8)
        return jnp.sum(o) + jnp.sum(last.memory)

    value, gradients = jax.jit(jax.value_and_grad(total))(given)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_gradient_keeps_a_memory_a_chunk_not_a_token(engine: str) -> None:
    """With keys and values of 64 features, no array that the gradient keeps comes near."""
    given, state = inputs("head", -1.0, engine)
    length, size = 256, 64
    wide = tuple(
        jnp.resize(x, (BATCH, length, HEADS, size) if x.shape[-1] in (KEY, VALUE) else
                   (BATCH, length, *x.shape[2:]))
        for x in given
    )  # fmt: skip
    segments = jnp.ones((BATCH, length), jnp.int32)

    def run(given: tuple, memory: jax.Array) -> jax.Array:
        return ENGINES[engine](*given, segments, State(memory, state.segment), chunk=16)[0]

    _, pull = jax.vjp(run, wide, jnp.zeros((BATCH, HEADS, size, size)))
    kept = max(leaf.size for leaf in jax.tree.leaves(pull))
    assert kept <= BATCH * HEADS * (length / 16) * size * size


def test_two_keys_that_are_one_are_the_delta_rule() -> None:
    (q, k, v, beta, log_decay), state = inputs("key", -0.5, "delta")
    segments = jnp.asarray(SEGMENTS)
    o, last = delta_rule(q, k, v, beta, log_decay, segments, state, chunk=8)
    write, erase = beta[..., None] * k, jnp.exp(log_decay) * k
    same, same_last = two_key_delta_rule(q, write, v, erase, log_decay, segments, state, chunk=8)
    np.testing.assert_allclose(same, o, rtol=0, atol=1e-12)
    np.testing.assert_allclose(same_last.memory, last.memory, rtol=0, atol=1e-12)


def test_the_past_with_the_token_itself_is_the_memory_after_it() -> None:
    """S_tᵀ q = S_{t−1}ᵀ (a_t ⊙ q) + (k · q) v."""
    (q, k, v, log_decay), state = inputs("key", -0.5, "decayed")
    segments = jnp.asarray(SEGMENTS)
    o, last = decayed_outer_product(q, k, v, log_decay, segments, state, chunk=8)
    decayed = jnp.exp(log_decay) * q
    past, same_last = past_outer_product(decayed, k, v, log_decay, segments, state, chunk=8)
    own = jnp.sum(q * k, axis=-1, keepdims=True) * v
    np.testing.assert_allclose(past + own, o, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(same_last.memory, last.memory)


def test_the_diagonal_engine_in_chunks_equals_one_step_after_another() -> None:
    rng = np.random.default_rng(2)
    a = jnp.asarray(rng.uniform(size=(BATCH, LENGTH, 4)))
    b = jnp.asarray(rng.normal(size=(BATCH, LENGTH, 4)))
    start, segments = jnp.asarray(rng.normal(size=(BATCH, 4))), jnp.asarray(SEGMENTS)

    def chunked(a: jax.Array, b: jax.Array, start: jax.Array) -> jax.Array:
        return diagonal_recurrence(a, b, segments, start, jnp.array([7, 5]), chunk=8)

    def defined(a: jax.Array, b: jax.Array, start: jax.Array) -> jax.Array:
        rows, last = [], np.array([7, 5])
        h = start
        for t in range(LENGTH):
            same = jnp.asarray(SEGMENTS[:, t] == last)[:, None]
            h, last = jnp.where(same, a[:, t] * h, 0.0) + b[:, t], SEGMENTS[:, t]
            rows.append(h)
        return jnp.stack(rows, axis=1)

    for ours, theirs in (
        (chunked(a, b, start), defined(a, b, start)),
        *zip(
            jax.grad(lambda *x: jnp.sum(jnp.sin(chunked(*x))), (0, 1, 2))(a, b, start),
            jax.grad(lambda *x: jnp.sum(jnp.sin(defined(*x))), (0, 1, 2))(a, b, start),
            strict=True,
        ),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
