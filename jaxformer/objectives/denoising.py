"""What objectives share that draw which tokens are predicted from which."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import Field, PositiveInt

from jaxformer.batch import Batch
from jaxformer.model.config import ModelConfig
from jaxformer.model.inputs import MASK
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.rows import LayerAux
from jaxformer.objectives.base import (
    Evaluated,
    Loss,
    ObjectiveConfig,
    PyTree,
    Reference,
    loss_of_sums,
)
from jaxformer.objectives.requirements import ANY_ORDER, check_any_order, check_mask
from jaxformer.ops.cross_entropy import LossSums

# The lowest share of tokens that is hidden: losses are divided by it.
LOWEST_RATE = 1e-3

# `LanguageModel.loss` of (inputs, targets, positions, segment_ids, weights, order=…).
LossOfRows = Callable[..., tuple[LossSums, LayerAux]]


class Noise(NamedTuple):
    """Float32 numbers in [0, 1)."""

    offsets: jax.Array  # [rows, 1], each uniform, and together spread evenly
    coins: jax.Array  # [rows, length], independent


class DenoisingConfig(ObjectiveConfig):
    """An objective that predicts the same targets as the next token's does, target i at position i,
    but from other tokens than all those before it.

    What is predicted from what is drawn: in training from the step's key, in validation from each
    row's own tokens, so that a row has the same loss in every evaluation. The last token of a
    document is only predicted, as the next token's objective has it: no other prediction sees it.
    """

    keys: ClassVar[tuple[str, ...]] = ("noise",)
    is_causal: ClassVar[bool] = False
    needs = f"{ANY_ORDER}; model.inputs.mask"
    gives_order: ClassVar[bool] = True

    eval_draws: PositiveInt = Field(
        4, description="how many draws per row an evaluation is the mean of"
    )

    @property
    def is_bound(self) -> bool:
        return True

    def check(self, model: ModelConfig) -> None:
        check_mask(self.kind, model)
        check_any_order(self.kind, model)

    def noised(self, loss_of: LossOfRows, batch: Batch, noise: Noise) -> tuple[LossSums, LayerAux]:
        """The loss of a batch under some noise, whose `tokens` are all that the batch's mask names,
        and what the layers say per token of the batch."""
        raise NotImplementedError

    def loss(
        self,
        model: LanguageModel,
        params: PyTree,
        batch: Batch,
        *,
        z_loss: float,
        rngs: dict[str, jax.Array],
        reference: Reference | None,
    ) -> Loss:
        loss_of = partial(model.apply, {"params": params}, z_loss=z_loss, method="loss", rngs=rngs)
        sums, layers = self.noised(loss_of, batch, noise_of_batch(batch, rngs["noise"]))
        return loss_of_sums(sums, layers, z_loss)

    def evaluate(self, model: LanguageModel, params: PyTree, batch: Batch) -> Evaluated:
        loss_of = partial(model.apply, {"params": params}, method="loss")

        def of_draw(draw: jax.Array) -> tuple[LossSums, LayerAux]:
            return self.noised(loss_of, batch, noise_of_rows(batch, draw, self.eval_draws))

        found = jax.lax.map(of_draw, jnp.arange(self.eval_draws))
        return Evaluated(*jax.tree.map(partial(jnp.mean, axis=0), found))


def noise_of_batch(batch: Batch, key: jax.Array) -> Noise:
    """Offsets k/n + u mod 1 of n rows, with one u: each is uniform, and together they cover [0, 1)
    evenly, which lowers the variance of the loss (Kingma et al., 2021, arXiv:2107.00630, appendix
    I.1)."""
    rows = batch.inputs.shape[0]
    of_offset, of_coins = jax.random.split(key)
    shares = jnp.arange(rows, dtype=jnp.float32)[:, None] / rows
    offset = jax.random.uniform(of_offset, (), jnp.float32)
    coins = jax.random.uniform(of_coins, batch.positions.shape, jnp.float32)
    return Noise(jnp.mod(shares + offset, 1.0), coins)


def noise_of_rows(batch: Batch, draw: jax.Array, draws: int) -> Noise:
    """A function of each row's own inputs; the offsets of a row's draws are spread evenly."""
    length, inputs = batch.positions.shape[1], batch.inputs.reshape(len(batch.inputs), -1)
    factors = jax.random.bits(jax.random.key(0), inputs.shape[1:], jnp.uint32)
    sums = jnp.sum(inputs.astype(jnp.uint32) * factors, axis=1, dtype=jnp.uint32)

    def of_row(number: jax.Array) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(jax.random.key(1), number)
        coins = jax.random.uniform(jax.random.fold_in(key, 1 + draw), (length,), jnp.float32)
        return jax.random.uniform(jax.random.fold_in(key, 0), (1,), jnp.float32), coins

    offsets, coins = jax.vmap(of_row)(sums)
    return Noise(jnp.mod(offsets + draw.astype(jnp.float32) / draws, 1.0), coins)


def goes_on(batch: Batch) -> jax.Array:
    """[rows, length], whether target i is input i + 1: not where a document or the row ends."""
    same = batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]
    return jnp.pad(same, ((0, 0), (0, 1)))


class Hidden(NamedTuple):
    """A batch with some targets hidden."""

    inputs: jax.Array  # [rows, length], MASK in place of hidden tokens
    weights: jax.Array  # [rows, length], float32: of every target's loss


def hide(batch: Batch, rates: jax.Array, coins: jax.Array, is_seen: jax.Array) -> Hidden:
    """Hide each target in the loss with its probability `rates` [rows, length], and weight it by
    1 / rate if hidden, else by 0.

    A target that no other prediction would see, where `is_seen` is not set, is always hidden, with
    weight 1: it has the same loss at every rate.
    """
    rates = jnp.where(is_seen, rates, 1.0)
    hidden = batch.loss_mask & (coins < rates)
    replaced = jnp.pad(hidden & is_seen, ((0, 0), (1, 0)))[:, :-1]  # target i is input i + 1
    return Hidden(jnp.where(replaced, MASK, batch.inputs), jnp.where(hidden, 1.0 / rates, 0.0))


def of_all(sums: LossSums, batch: Batch) -> LossSums:
    """Sums over hidden tokens, to be divided by the number of all tokens in the loss."""
    return sums._replace(tokens=jnp.sum(batch.loss_mask, dtype=jnp.float32))
