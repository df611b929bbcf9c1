"""Tokens picked out of rows and put back."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.ops.selection import best_of, put, room, select, take

X = jnp.arange(1.0, 13.0).reshape(2, 6, 1)
PICKED = jnp.array([[0, 1, 0, 0, 1, 1], [1, 0, 0, 0, 0, 0]], bool)


def test_the_best_candidates_are_picked_and_nothing_else_to_fill_the_number() -> None:
    scores = jnp.array([[9.0, 1.0, 3.0, 2.0, 3.0, 3.0], [9.0, 8.0, -7.0, 6.0, 5.0, 4.0]])
    candidates = jnp.array([[0, 1, 1, 1, 1, 1], [0, 0, 1, 0, 0, 0]], bool)
    picked = best_of(scores, candidates, 1 / 3)
    expected = [[0, 0, 1, 0, 1, 0], [0, 0, 1, 0, 0, 0]]  # of three equal scores, the first two
    np.testing.assert_array_equal(picked, expected)


def test_taken_tokens_keep_their_order_and_empty_slots_are_zero() -> None:
    selection = select(PICKED, 0.5)
    given = take(selection, (X, PICKED))
    np.testing.assert_array_equal(given[0][..., 0], [[2, 5, 6], [7, 0, 0]])
    np.testing.assert_array_equal(given[1], [[1, 1, 1], [1, 0, 0]])
    back = put(selection, given[0] + 100)
    np.testing.assert_array_equal(back[..., 0], [[0, 102, 0, 0, 105, 106], [107, 0, 0, 0, 0, 0]])


def test_gradients_are_those_of_a_gather_and_a_scatter() -> None:
    selection = select(PICKED, 0.5)
    weights = jnp.array([[[2.0], [3.0], [4.0]], [[5.0], [6.0], [7.0]]])
    of_take = jax.grad(lambda x: jnp.sum(take(selection, x) * weights))(X)
    np.testing.assert_array_equal(of_take[..., 0], [[0, 2, 0, 0, 3, 4], [5, 0, 0, 0, 0, 0]])
    of_put = jax.grad(lambda y: jnp.sum(put(selection, y) * X))(weights)
    np.testing.assert_array_equal(of_put[..., 0], [[2, 5, 6], [7, 0, 0]])


def test_room_is_rounded_up_but_not_for_the_last_bit() -> None:
    assert [room(0.07, 100), room(0.125, 20), room(1e-9, 20), room(1.0, 7)] == [7, 3, 1, 7]
