"""Masked diffusion's bound against autoregression in every order, by enumeration."""

import itertools
import math
from functools import partial

import jax
import numpy as np
import pytest
from objectives.small import documents, model_of, rows_of

from jaxformer.model.inputs import MASK
from jaxformer.objectives import MaskedDiffusionConfig
from jaxformer.objectives.denoising import LOWEST_RATE, Noise
from jaxformer.ops.attention import Order

COUNT = 4  # targets, of a vocabulary of four
BATCH = rows_of(COUNT, documents(COUNT, vocab_size=4))
MASKS = list(itertools.product([False, True], repeat=COUNT))


@pytest.fixture
def losses() -> dict[tuple[bool, ...], np.ndarray]:
    """−log p(target_i | what is not hidden) of the four targets, for each of the 16 masks, each
    token put in place by hand."""
    model, params = model_of(vocab_size=4)
    inputs = np.array([BATCH.inputs[0].tolist()] * len(MASKS))
    for row, mask in enumerate(MASKS):
        for target in range(COUNT - 1):
            if mask[target]:
                inputs[row, target + 1] = MASK
    shape = inputs.shape
    order = Order(np.zeros(shape, np.int32), np.zeros(shape, bool))
    logits = model.apply({"params": params}, inputs, order=order)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    picked = np.take_along_axis(log_probs, np.resize(BATCH.targets, shape)[..., None], axis=-1)
    return dict(zip(MASKS, -picked[..., 0], strict=True))


def mean_over_orders(losses: dict) -> float:
    """The chain rule's loss, averaged over the 24 orders in which targets can become known."""
    total = 0.0
    for order in itertools.permutations(range(COUNT)):
        hidden = [True] * COUNT
        for target in order:
            total += losses[tuple(hidden)][target]
            hidden[target] = False
    return total / math.factorial(COUNT)


def test_the_linear_schedules_bound_is_the_mean_over_all_orders(losses):
    """Σ_k (1/k) mean_{|M|=k} Σ_{i∈M} −log p(target_i | what M leaves)."""
    bound = 0.0
    for count in range(1, COUNT + 1):
        of_size = [mask for mask in MASKS if sum(mask) == count]
        sums = [sum(losses[mask][i] for i in range(COUNT) if mask[i]) for mask in of_size]
        bound += np.mean(sums) / count
    assert bound == pytest.approx(mean_over_orders(losses), rel=1e-12)


def test_the_objective_expects_the_mean_over_all_orders(losses):
    """Its loss is a polynomial in t of degree 3 when weighted by the masks' probabilities, which
    Gauss-Legendre quadrature integrates exactly. The objective leaves out t below 0.001, which
    the quadrature, over [0, 1], puts back."""
    model, params = model_of(vocab_size=4)
    objective = MaskedDiffusionConfig()
    loss_of = partial(model.apply, {"params": params}, method="loss")

    @jax.jit
    def loss(t: float, coins: np.ndarray) -> jax.Array:
        offsets = (t - LOWEST_RATE) / (1 - LOWEST_RATE)
        return objective.noised(loss_of, BATCH, Noise(offsets[None, None], coins[None]))[0].loss

    nodes, weights = np.polynomial.legendre.leggauss(4)
    total = 0.0
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        for mask in MASKS:
            probability = math.prod(t if hidden else 1 - t for hidden in mask)
            total += weight * probability * loss(t, np.where(mask, 0.0, 0.999))
    assert total == pytest.approx(mean_over_orders(losses), rel=1e-12)


def test_all_tokens_of_a_document_see_each_other_and_no_other_document():
    model, params = model_of()
    batch = rows_of(10, documents(6, 3))
    _, _, positions, segment_ids, _ = batch
    shape = batch.inputs.shape
    order = Order(np.zeros(shape, np.int32), np.zeros(shape, bool))

    changed = batch.inputs.copy()
    changed[0, 5] = (changed[0, 5] + 1) % 7  # the last input of the first document
    before, after = (
        model.apply({"params": params}, inputs, positions, segment_ids, order)[0]
        for inputs in (batch.inputs, changed)
    )
    moved = np.abs(np.asarray(before - after)).max(axis=-1)
    assert np.all(moved[:6] > 1e-6) and np.all(moved[6:9] == 0)
