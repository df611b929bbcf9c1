"""Sticks that are broken, against what is known of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops.attention import Tokens
from jaxformer.ops.stick_breaking import row_stick_breaking, stick_breaking

LENGTH = 200  # four blocks, the last one short


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def documents() -> jax.Array:
    """A row of documents of 150, 1, 3 and 46 tokens, and a row of one."""
    lengths = [[150, 1, 3, 46], [LENGTH]]
    rows = [np.repeat(np.arange(1, len(row) + 1), row) for row in lengths]
    return jnp.asarray(np.stack(rows), jnp.int32)


def test_blocks_equal_one_look_at_all_keys() -> None:
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, LENGTH, 2, 4), jnp.float64)
    places = jnp.arange(LENGTH, dtype=jnp.int32)[None]
    tokens = Tokens(places, places, documents())
    blocks = row_stick_breaking(q, k, v, documents(), scale=0.5)
    whole = stick_breaking(q, k, v, tokens, tokens, scale=0.5)
    for ours, expected in zip(blocks, whole, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-14)


def test_weights_and_what_is_left_are_the_whole_stick() -> None:
    q, k = jax.random.normal(jax.random.key(0), (2, 2, LENGTH, 2, 4), jnp.float64)
    ones = jnp.ones((2, LENGTH, 2, 1))
    taken, left = row_stick_breaking(q, k, ones, documents(), scale=3.0)
    np.testing.assert_allclose(taken[..., 0] + left, 1.0, rtol=0, atol=1e-13)
    # The first token of a document leaves all of it.
    first = np.diff(documents(), axis=1, prepend=0) != 0
    np.testing.assert_array_equal(np.asarray(left)[first], 1.0)
    np.testing.assert_array_equal(np.asarray(taken)[first], 0.0)


def test_keys_that_take_half_are_worth_half_of_the_one_after_them() -> None:
    """Four tokens, whose values are 8, 4, 2 and 1: the last reads 2/2 + 4/4 + 8/8."""
    q = jnp.zeros((1, 4, 1, 1))
    values = jnp.array([8.0, 4.0, 2.0, 1.0]).reshape(1, 4, 1, 1)
    taken, left = row_stick_breaking(q, q, values, jnp.ones((1, 4), jnp.int32), scale=1.0)
    np.testing.assert_allclose(taken[0, :, 0, 0], [0, 4, 4, 3], rtol=1e-15)
    np.testing.assert_allclose(left[0, :, 0], [1, 1 / 2, 1 / 4, 1 / 8], rtol=1e-15)


@pytest.mark.parametrize("logit", [-1e30, -50.0, 50.0, 1e30])
def test_extreme_logits_give_finite_gradients(logit: float) -> None:
    """Shares of 0 and 1: nothing is read, or the token before."""
    q = jnp.full((1, 5, 1, 1), logit, jnp.float32)
    k, v = jnp.ones_like(q), jnp.arange(5.0, dtype=jnp.float32).reshape(1, 5, 1, 1)

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        taken, left = row_stick_breaking(q, k, v, jnp.ones((1, 5), jnp.int32), scale=1.0)
        return jnp.sum(taken) + jnp.sum(left), taken

    gradients, taken = jax.grad(total, (0, 1, 2), has_aux=True)(q, k, v)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    expected = [0, 0, 1, 2, 3] if logit > 0 else [0] * 5
    np.testing.assert_allclose(taken[0, :, 0, 0], expected, rtol=0, atol=1e-20)
