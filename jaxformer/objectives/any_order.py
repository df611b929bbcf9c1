"""Autoregression in any order, with a stream of its own for predictions (XLNet, Yang et al., 2019,
arXiv:1906.08237; σ-GPT, Pannatier et al., 2024, arXiv:2404.09562)."""

from functools import partial
from typing import ClassVar, Literal

import jax.numpy as jnp
from pydantic import Field

from jaxformer.batch import Batch
from jaxformer.model.inputs import MASK
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.rows import LayerAux
from jaxformer.objectives.base import Evaluated, PyTree
from jaxformer.objectives.denoising import DenoisingConfig, LossOfRows, Noise
from jaxformer.objectives.two_streams import loss_of_streams
from jaxformer.ops.cross_entropy import LossSums


class AnyOrderConfig(DenoisingConfig):
    """Σ_k −log p(target_{σ(k)} | targets σ(1) … σ(k − 1), the first token of the document), for an
    order σ of each document that is drawn anew.

    A prediction's own token is always MASK, and its position says which target it predicts; all
    that it knows, it sees of the tokens before it in the order. Targets outside the loss come
    first, from left to right. Rows of twice the length pass the layers once.
    """

    kind: Literal["any_order"] = "any_order"
    decoder = "one token after another, from left to right"
    tokens_read: ClassVar[float] = 2.0

    eval_order: Literal["random", "left_to_right"] = Field(
        "random",
        description="the order in evaluations: random gives a bound, left_to_right the exact "
        "cross-entropy in that order",
    )

    @property
    def is_bound(self) -> bool:
        return self.eval_order == "random"

    def noised(self, loss_of: LossOfRows, batch: Batch, noise: Noise) -> tuple[LossSums, LayerAux]:
        inputs = jnp.asarray(batch.inputs)
        in_row = jnp.arange(inputs.shape[1], dtype=jnp.float32) / inputs.shape[1]
        drawn = jnp.where(batch.loss_mask, noise.coins, in_row - 1.0)
        step = jnp.argsort(jnp.argsort(drawn, axis=1), axis=1).astype(jnp.int32)
        # Input i is target i − 1, or given from the start.
        before = jnp.pad(step, ((0, 0), (1, 0)))[:, :-1]
        known = jnp.where(batch.positions == 0, -1, before)
        weights = jnp.asarray(batch.loss_mask)
        return loss_of_streams(loss_of, batch, jnp.full_like(inputs, MASK), weights, step, known)

    def evaluate(self, model: LanguageModel, params: PyTree, batch: Batch) -> Evaluated:
        if self.eval_order == "random":
            return super().evaluate(model, params, batch)
        length = batch.inputs.shape[1]
        in_row = jnp.broadcast_to(jnp.arange(length, dtype=jnp.float32), batch.inputs.shape)
        noise = Noise(jnp.zeros((len(batch.inputs), 1), jnp.float32), in_row / length)
        loss_of = partial(model.apply, {"params": params}, method="loss")
        return Evaluated(*self.noised(loss_of, batch, noise))
