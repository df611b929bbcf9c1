"""Doubly stochastic matrices of any numbers."""

import jax
import numpy as np

from jaxformer.ops.doubly_stochastic import mixed_permutations, permutations, sinkhorn


def test_sums_of_permutations_are_exact_where_sinkhorn_is_not() -> None:
    """The error of twenty iterations with logits eight apart is what the literature tells."""
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        found = sinkhorn(8 * random.normal(size=(200, 4, 4)), 20)
        np.testing.assert_allclose(np.sum(found, axis=-1), 1.0, rtol=0, atol=1e-13)
        assert np.abs(np.sum(found, axis=-2) - 1).max() > 0.05
        exact = mixed_permutations(8 * random.normal(size=(200, 24)), 4)
        for axis in (-1, -2):
            np.testing.assert_allclose(np.sum(exact, axis=axis), 1.0, rtol=0, atol=1e-14)
        assert (exact >= 0).all()


def test_sinkhorn_is_alternating_division() -> None:
    with jax.enable_x64(True):
        logits = np.random.default_rng(0).normal(size=(3, 3))
        matrix = np.exp(logits)
        for _ in range(5):
            matrix /= matrix.sum(axis=0)
            matrix /= matrix.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(sinkhorn(logits, 5), matrix, rtol=1e-13)


def test_the_first_permutation_changes_nothing() -> None:
    every = permutations(3)
    assert len({tuple(each.ravel()) for each in every}) == len(every) == 6
    np.testing.assert_array_equal(every[0], np.eye(3))
