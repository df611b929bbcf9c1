"""Autoregression in any order: predictions in a stream of their own."""

from functools import partial

import jax
import numpy as np
import pytest
from objectives.small import documents, model_of, rows_of

from jaxformer.model.inputs import MASK
from jaxformer.objectives import AnyOrderConfig
from jaxformer.objectives.denoising import Noise

LENGTH = 5


def test_the_loss_is_the_chain_rules_with_a_row_read_anew_for_every_target():
    """The reference is a causal row of the known tokens in the order drawn, each with its own
    position, and of MASK at the position that asks. The last token is no input, so nothing sees it.
    """
    model, params = model_of()
    [text] = documents(LENGTH)
    sigma = [3, 0, 4, 1, 2]  # targets in the order in which they become known
    coins = np.empty((1, LENGTH), np.float32)
    coins[0, sigma] = np.arange(LENGTH) / LENGTH
    noise = Noise(np.zeros((1, 1), np.float32), coins)
    loss_of = partial(model.apply, {"params": params}, method="loss")
    ours, _ = AnyOrderConfig().noised(loss_of, rows_of(LENGTH, [text]), noise)

    forward = jax.jit(partial(model.apply, {"params": params}))
    expected = 0.0
    for place, target in enumerate(sigma):
        known = [0, *(i + 1 for i in sigma[:place] if i + 1 < LENGTH)]  # places in the text
        filling = [0] * (LENGTH - len(known))
        tokens = [*text[known], MASK, *filling]
        positions = [*known, target, *filling]
        segments = [1] * (len(known) + 1) + [0] * len(filling)
        logits = forward(*(np.array([row]) for row in (tokens, positions, segments)))
        expected -= jax.nn.log_softmax(logits[0, len(known)])[text[target + 1]]
    assert ours.loss == pytest.approx(float(expected), rel=1e-12)
    assert ours.tokens == LENGTH


def test_from_left_to_right_an_evaluation_is_exact_and_otherwise_a_bound():
    model, params = model_of()
    batch = rows_of(LENGTH, documents(LENGTH))
    exact = AnyOrderConfig(eval_order="left_to_right")
    in_order = Noise(np.zeros((1, 1), np.float32), np.arange(LENGTH)[None] / LENGTH)
    loss_of = partial(model.apply, {"params": params}, method="loss")
    expected, _ = exact.noised(loss_of, batch, in_order)
    found = exact.evaluate(model, params, batch).sums
    assert found.loss == pytest.approx(float(expected.loss), rel=1e-12)
    random = AnyOrderConfig().evaluate(model, params, batch).sums
    assert abs(random.loss - found.loss) > 1e-3
    assert AnyOrderConfig().is_bound and not exact.is_bound


def test_targets_outside_the_loss_are_known_before_all_others():
    """Whatever is drawn, a target in the loss is predicted from the text outside of it."""
    batch = rows_of(LENGTH, documents(LENGTH))
    batch = batch._replace(loss_mask=np.array([[True, False, True, False, True]]))
    found = {}

    def loss_of(*rows, order):
        found["asking"], found["known"] = np.split(np.asarray(order.rank[0]), 2)
        raise StopIteration

    coins = np.array([[0.2, 0.0, 0.1, 0.5, 0.0]], np.float32)
    with pytest.raises(StopIteration):
        AnyOrderConfig().noised(loss_of, batch, Noise(np.zeros((1, 1)), coins))
    np.testing.assert_array_equal(found["asking"], [8, 0, 6, 2, 4])
    np.testing.assert_array_equal(found["known"], [-1, 9, 1, 7, 3])
