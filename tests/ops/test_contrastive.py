"""Contrastive losses in float64 against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops.contrastive import LOSSES, NO_PAIR, Sides, Similarity

# Three pairs, numbered out of order, and two rows that only fill up a batch.
PAIRS = np.array([4, NO_PAIR, 0, 7, NO_PAIR])
REAL = np.flatnonzero(PAIRS != NO_PAIR)


def by_definition(form: str, similarity: Similarity, sides: Sides) -> jax.Array:
    x, y = sides.x[REAL], sides.y[REAL]
    logits = similarity.scale * x @ y.T + similarity.bias
    if form == "sigmoid":
        # Σ_i Σ_j −log σ(z_ij l_ij), z = 1 on the diagonal and −1 elsewhere.
        return -jnp.sum(jnp.log(jax.nn.sigmoid((2 * np.eye(len(REAL)) - 1) * logits)))
    probabilities = [jnp.exp(logits) / jnp.exp(logits).sum(axis, keepdims=True) for axis in (0, 1)]
    return -sum(jnp.sum(jnp.log(jnp.diagonal(each))) for each in probabilities) / 2


@pytest.mark.parametrize("form", LOSSES)
def test_a_loss_is_its_definition_with_all_gradients(form: str):
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        sides = Sides(*jnp.asarray(random.normal(size=(2, len(PAIRS), 4))))
        similarity = Similarity(jnp.float64(1.7), jnp.float64(-0.6))

        def loss(similarity: Similarity, sides: Sides) -> jax.Array:
            return 3.0 * LOSSES[form](similarity, sides, jnp.asarray(PAIRS))

        def defined(similarity: Similarity, sides: Sides) -> jax.Array:
            return 3.0 * by_definition(form, similarity, sides)

        found, expected = (
            jax.jit(jax.value_and_grad(each, (0, 1)))(similarity, sides) for each in (loss, defined)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, expected)


@pytest.mark.parametrize("form", LOSSES)
def test_a_loss_is_finite_where_logits_are_large(form: str):
    """At the largest scale that CLIP allows, of vectors that are opposite: −log p is 200."""
    x = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    similarity, pairs = Similarity(jnp.float32(100.0), jnp.float32(0.0)), jnp.arange(2)

    def loss(sides: Sides) -> jax.Array:
        return LOSSES[form](similarity, sides, pairs)

    total, gradients = jax.value_and_grad(loss)(Sides(x, -x))
    # Sigmoid: −log σ(−100) = 100 for all four; softmax: 200 for each of two texts and pictures.
    np.testing.assert_allclose(total, 400, rtol=1e-6)
    assert all(np.isfinite(each).all() for each in gradients)
