"""Autoregression over blocks of tokens, with diffusion inside them."""

from functools import partial

import jax
import numpy as np
import pytest
from objectives.small import documents, model_of, rows_of

from jaxformer.objectives import BlockDiffusionConfig, NextTokenConfig
from jaxformer.objectives.denoising import Noise
from jaxformer.ops.attention import Order, Tokens, Visibility

PACKED = rows_of(10, documents(6, 3), documents(4, 5, seed=1))


@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_blocks_of_one_are_autoregression_in_loss_and_gradients(positions):
    model, params = model_of(positions)

    @partial(jax.jit, static_argnums=0)
    def measure(objective, params):
        def total(params):
            rngs = {"noise": jax.random.key(3)}
            options = {"z_loss": 1e-3, "rngs": rngs, "reference": None}
            loss = objective.loss(model, params, PACKED, **options)
            return loss.total, loss.weight

        return jax.value_and_grad(total, has_aux=True)(params)

    (loss, tokens), gradients = measure(BlockDiffusionConfig(block=1), params)
    (expected, expected_tokens), expected_gradients = measure(NextTokenConfig(), params)
    assert tokens == expected_tokens == 18
    assert loss == pytest.approx(float(expected), rel=1e-12)
    assert np.all(np.asarray(gradients.pop("mask_embedding")) == 0)
    expected_gradients.pop("mask_embedding")
    for ours, theirs in zip(*map(jax.tree.leaves, (gradients, expected_gradients)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_blocks_of_one_report_the_next_tokens_cross_entropy_and_no_bound():
    model, params = model_of()
    objective = BlockDiffusionConfig(block=1)
    both = (objective, NextTokenConfig())
    ours, theirs = (each.evaluate(model, params, PACKED)[0] for each in both)
    assert (
        ours.loss == pytest.approx(float(theirs.loss), rel=1e-12) and ours.tokens == theirs.tokens
    )
    assert not objective.is_bound and BlockDiffusionConfig(block=2).is_bound


def test_tokens_see_their_noisy_block_earlier_clean_ones_and_clean_ones_up_to_their_own():
    """Blocks of two in a document of five inputs and one of two; what row i sees has a 1."""
    seen = {}

    def loss_of(inputs, targets, positions, segment_ids, weights, order):
        in_row = np.arange(inputs.shape[1])[None]
        tokens = Tokens(in_row, positions, segment_ids, order)
        seen["mask"] = Visibility().mask(tokens, tokens)[0]
        raise StopIteration

    batch = rows_of(7, documents(5, 2))
    noise = Noise(np.zeros((1, 1), np.float32), np.zeros((1, 7), np.float32))
    with pytest.raises(StopIteration):
        BlockDiffusionConfig(block=2).noised(loss_of, batch, noise)
    noisy = """
        1100000 0000000
        1100000 0000000
        0011000 1100000
        0011000 1100000
        0000100 1111000
        0000011 0000000
        0000011 0000000"""
    clean = """
        0000000 1100000
        0000000 1100000
        0000000 1111000
        0000000 1111000
        0000000 1111100
        0000000 0000011
        0000000 0000011"""
    lines = [line.replace(" ", "") for line in (noisy + clean).split("\n") if line.strip()]
    by_hand = np.array([[sign == "1" for sign in line] for line in lines])
    np.testing.assert_array_equal(seen["mask"], by_hand)


def test_an_order_is_of_ranks_and_of_keys_that_only_their_own_rank_sees():
    rank, private = np.array([[0, 0, 1, 2]]), np.array([[True, False, False, True]])
    tokens = Tokens(np.arange(4)[None], rank, np.ones((1, 4), int), Order(rank, private))
    by_hand = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    np.testing.assert_array_equal(Visibility().mask(tokens, tokens)[0], by_hand)


def test_the_first_token_of_a_block_is_never_hidden():
    inputs = {}

    def loss_of(tokens, *rows, order):
        inputs["noisy"], inputs["clean"] = np.split(np.asarray(tokens), 2, axis=1)
        raise StopIteration

    noise = Noise(np.zeros((2, 1), np.float32), np.zeros((2, 10), np.float32))  # all are hidden
    with pytest.raises(StopIteration):
        BlockDiffusionConfig(block=3).noised(loss_of, PACKED, noise)
    np.testing.assert_array_equal(inputs["clean"], PACKED.inputs)
    is_given = (PACKED.positions % 3 == 0) | (PACKED.segment_ids == 0)
    np.testing.assert_array_equal(inputs["noisy"] == -1, ~is_given)
    np.testing.assert_array_equal(inputs["noisy"][is_given], PACKED.inputs[is_given])
