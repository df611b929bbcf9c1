"""Rows of predictions beside the tokens that they see, read in one pass."""

import jax
import jax.numpy as jnp

from jaxformer.batch import Batch
from jaxformer.model.rows import LayerAux
from jaxformer.objectives.denoising import LossOfRows
from jaxformer.ops.attention import Order
from jaxformer.ops.cross_entropy import LossSums


def loss_of_streams(
    loss_of: LossOfRows,
    batch: Batch,
    asking: jax.Array,
    weights: jax.Array,
    step: jax.Array,
    known: jax.Array,
) -> tuple[LossSums, LayerAux]:
    """The loss of rows [asking; the batch's inputs] of 2 · length tokens, in a document:

    - an asking token sees those asking in its own step, and the tokens known before that step;
    - a token sees the tokens known before its own step ends, itself among them.

    Args:
        asking: [rows, length], the ids in the predictions' own stream.
        weights: [rows, length], of the targets' losses.
        step: [rows, length], int32 ≥ 0, when target i is predicted.
        known: [rows, length], int32 ≥ −1, the step by whose end input i is known.
    """
    inputs, positions, segment_ids = (
        jnp.concatenate(pair, axis=1)
        for pair in (
            (asking, batch.inputs),
            (batch.positions, batch.positions),
            (batch.segment_ids, batch.segment_ids),
        )
    )
    private = jnp.concatenate([jnp.ones(step.shape, bool), jnp.zeros(step.shape, bool)], axis=1)
    order = Order(jnp.concatenate([2 * step, 2 * known + 1], axis=1), private)
    sums, layers = loss_of(inputs, batch.targets, positions, segment_ids, weights, order=order)
    return sums, jax.tree.map(lambda x: x / 2, layers)  # two tokens were read for each
