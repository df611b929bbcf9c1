"""What the objectives share that draw which tokens are predicted from which."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives.small import VOCAB, documents, model_of, rows_of

from jaxformer.batch import Batch
from jaxformer.model.inputs import MASK
from jaxformer.objectives import AnyOrderConfig, BlockDiffusionConfig, MaskedDiffusionConfig
from jaxformer.objectives.denoising import Noise, goes_on, hide, noise_of_batch

OBJECTIVES = [
    MaskedDiffusionConfig(eval_draws=2),
    BlockDiffusionConfig(block=3, rates=(0.5, 0.5), eval_draws=2),
    AnyOrderConfig(eval_draws=2),
]
LENGTH = 10


@partial(jax.jit, static_argnums=0)
def noised(objective, params: dict, batch: Batch, noise: Noise) -> tuple:
    model, _ = model_of()
    loss_of = partial(model.apply, {"params": params}, method="loss")
    sums, _ = objective.noised(loss_of, batch, noise)
    return sums.loss, sums.tokens


def of_kind(objective) -> str:
    return objective.kind


@pytest.mark.parametrize("objective", OBJECTIVES, ids=of_kind)
def test_packed_documents_have_the_losses_that_each_has_alone_among_padding(objective):
    _, params = model_of()
    texts = documents(6, 3)
    coins = np.random.default_rng(1).random((1, LENGTH)).astype(np.float32)
    offset = np.full((1, 1), 0.4, np.float32)
    packed, tokens = noised(objective, params, rows_of(LENGTH, texts), Noise(offset, coins))
    assert tokens == 9
    alone = []
    for start, text in zip((0, 6), texts, strict=True):
        own = np.roll(coins, -start, axis=1)
        alone.append(noised(objective, params, rows_of(LENGTH, [text]), Noise(offset, own))[0])
        assert alone[-1] > 0
    assert packed == pytest.approx(float(sum(alone)), rel=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=of_kind)
def test_an_evaluation_is_a_function_of_each_row_alone(objective):
    model, params = model_of()
    evaluate = jax.jit(partial(objective.evaluate, model))
    rows = [documents(6, 3), documents(9, seed=1), documents(2, 2, 2, seed=2), []]
    together = evaluate(params, rows_of(LENGTH, *rows)).sums
    again = evaluate(params, rows_of(LENGTH, *rows[::-1])).sums
    assert together.tokens == again.tokens == 24
    assert again.loss == pytest.approx(float(together.loss), rel=1e-12)
    each = [evaluate(params, rows_of(LENGTH, row, [], [], []))[0].loss for row in rows]
    assert sum(each) == pytest.approx(float(together.loss), rel=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=of_kind)
def test_training_draws_other_noise_for_another_key_and_the_same_for_the_same(objective):
    model, params = model_of()
    batch = rows_of(LENGTH, documents(6, 3), documents(9, seed=1))

    @jax.jit
    def loss(key: jax.Array) -> jax.Array:
        found = objective.loss(
            model, params, batch, z_loss=0.0, rngs={"noise": key}, reference=None
        )
        return found.total / found.weight

    keys = [jax.random.key(seed) for seed in (0, 0, 1)]
    one, same, other = map(loss, keys)
    assert one == same and one != other


def test_targets_are_weighted_so_that_their_expected_weight_is_one():
    """Over all ways in which coins can fall, weighted by their probability."""
    batch = rows_of(5, documents(3, 2))
    batch = batch._replace(loss_mask=np.array([[True, True, False, True, True]]))
    rate = 0.3
    expected, probability = np.zeros((1, 5)), 0.0
    for hidden in itertools.product([True, False], repeat=5):
        coins = np.where(hidden, 0.0, 0.99)[None]
        share = rate ** sum(hidden) * (1 - rate) ** (5 - sum(hidden))
        _, weights = hide(batch, jnp.float64(rate), coins, goes_on(batch))
        expected, probability = expected + share * weights, probability + share
    assert probability == pytest.approx(1.0, rel=1e-12)
    np.testing.assert_allclose(expected, batch.loss_mask, rtol=0, atol=1e-12)


def test_without_knowledge_every_objective_expects_the_logarithm_of_the_vocabulary():
    """With all logits 0, each weight counts log V; what is drawn only scatters their number."""
    _, params = model_of()
    zero = jax.tree.map(jnp.zeros_like, params)
    batch = rows_of(LENGTH, documents(6, 3), documents(9, seed=1))
    loss, tokens = noised(OBJECTIVES[2], zero, batch, noise_of_batch(batch, jax.random.key(0)))
    assert loss / tokens == pytest.approx(np.log(VOCAB), rel=1e-12)
    for objective in OBJECTIVES[:2]:
        draws = jax.vmap(
            lambda key, of=objective: noised(of, zero, batch, noise_of_batch(batch, key))[0]
        )(jax.random.split(jax.random.key(1), 4000))
        means = np.asarray(draws) / 18 / np.log(VOCAB)
        assert abs(means.mean() - 1) < 4 * means.std() / np.sqrt(len(means))
        assert 0 < means.std() < 1


def test_offsets_are_spread_evenly_and_each_is_uniform():
    batch = rows_of(4, *[documents(4)] * 8)
    found = jax.vmap(lambda key: noise_of_batch(batch, key))(
        jax.random.split(jax.random.key(0), 400)
    )
    offsets = np.sort(np.asarray(found.offsets)[..., 0], axis=1)  # [keys, rows]
    np.testing.assert_allclose(np.diff(offsets, axis=1), 1 / 8, atol=1e-6)
    assert abs(np.asarray(found.offsets)[:, 0].mean() - 0.5) < 0.05
    assert np.asarray(found.coins).min() >= 0 and np.asarray(found.coins).max() < 1
    assert len(np.unique(found.coins)) > 0.99 * found.coins.size


def test_a_hidden_token_has_an_embedding_of_its_own():
    """No id of the vocabulary shares it, and it is scaled as they are."""
    model, params = model_of()
    scaled = model.clone(config=model.config.model_copy(update={"scale_embeddings": 3.0}))
    tokens = np.array([[MASK, VOCAB - 1]])

    def embedded(params: dict) -> jax.Array:
        return scaled.apply({"params": params}, tokens, np.array([[0, 1]]), method="embed")

    x = embedded(params)
    np.testing.assert_allclose(x[0, 0], 3 * params["mask_embedding"], rtol=1e-12)
    np.testing.assert_allclose(x[0, 1], 3 * params["embedding"][-1], rtol=1e-12)
    gradient = jax.grad(lambda p: embedded(p)[0, 0].sum())(params)
    assert np.all(gradient["mask_embedding"] == 3) and np.all(gradient["embedding"] == 0)


def test_targets_outside_the_loss_are_never_hidden():
    batch = rows_of(6, documents(6))
    batch = batch._replace(loss_mask=np.array([[False, True, False, True, False, True]]))
    inputs, weights = hide(batch, np.float32(0.5), np.zeros((1, 6), np.float32), goes_on(batch))
    np.testing.assert_array_equal(inputs[0] == -1, [False, False, True, False, True, False])
    np.testing.assert_array_equal(weights[0], [0, 2, 0, 2, 0, 1])  # the last is no input
