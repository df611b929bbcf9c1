"""BERT's masked tokens (Devlin et al., 2018, arXiv:1810.04805), drawn anew in every step as in
RoBERTa (Liu et al., 2019, arXiv:1907.11692)."""

from functools import partial
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from jaxformer.batch import Batch
from jaxformer.model.config import ModelConfig
from jaxformer.model.inputs import MASK
from jaxformer.model.language_model import LanguageModel
from jaxformer.objectives.base import (
    Evaluated,
    Loss,
    ObjectiveConfig,
    PyTree,
    Reference,
    loss_of_sums,
)
from jaxformer.objectives.denoising import Noise, goes_on, noise_of_batch, noise_of_rows
from jaxformer.objectives.requirements import check_mask
from jaxformer.ops.cross_entropy import LossSums

Array = jax.Array | np.ndarray

# Of the tokens that are predicted: how many become the mask, and how many any token at random.
MASKED, RANDOM = 0.8, 0.1


class MaskedTokensConfig(ObjectiveConfig):
    """The mean of −log p(token_i | the document), over tokens that are drawn with probability
    `rate`: of these, 80% are hidden, 10% are another token at random, and 10% are as they were.

    The first and the last token of a document, which most tokenizers add, are never drawn; nor is
    one that is not in the loss. Validation draws from each row's own tokens, so that a row has the
    same loss in every evaluation.
    """

    kind: Literal["masked_tokens"] = "masked_tokens"
    needs = "model.order full"
    decoder = "none: jaxformer.load(RUN).embed"
    instead = "eval RUN"
    keys: ClassVar[tuple[str, ...]] = ("noise",)
    is_causal = False
    sees_whole_rows = True
    orders = ("full",)

    rate: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.15, description="the share of tokens that is predicted"
    )
    mask_id: NonNegativeInt | None = Field(
        None,
        description="the id of the token that stands for hidden ones, such as 103, BERT's [MASK]; "
        "null for the embedding that model.inputs.mask learns",
    )
    eval_draws: PositiveInt = Field(
        4, description="how many draws per row an evaluation is the mean of"
    )

    def check(self, model: ModelConfig) -> None:
        if self.mask_id is None:
            check_mask(self.kind, model)
        elif model.vocab_size is not None and self.mask_id >= model.vocab_size:
            raise ValueError(
                f"train.objective.mask_id is {self.mask_id}, but model.vocab_size is "
                f"{model.vocab_size}; give the id of the tokenizer's mask token, or null"
            )

    def masked(self, batch: Batch, noise: Noise, others: jax.Array) -> tuple[Array, ...]:
        """The rows of `LanguageModel.loss` whose loss is the objective's: target i is input i.

        Args:
            others: [rows, length], what stands for tokens that become another one.
        """
        inputs = jnp.asarray(batch.inputs)
        in_loss = jnp.pad(batch.loss_mask, ((0, 0), (1, 0)))[:, :-1]  # target i is input i + 1
        is_inside = (batch.positions > 0) & goes_on(batch)
        drawn = in_loss & is_inside & (noise.coins < self.rate)
        share = noise.coins / self.rate  # uniform among those
        hidden = MASK if self.mask_id is None else self.mask_id
        changed = jnp.where(
            share < MASKED, hidden, jnp.where(share < MASKED + RANDOM, others, inputs)
        )
        changed = jnp.where(drawn, changed, inputs)
        return changed, inputs, batch.positions, batch.segment_ids, drawn

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
        of_coins, of_others = jax.random.split(rngs["noise"])
        masked = self.masked(
            batch, noise_of_batch(batch, of_coins), _any_tokens(model, of_others, batch)
        )
        sums, layers = model.apply(
            {"params": params}, *masked, z_loss=z_loss, method="loss", rngs=rngs
        )
        return loss_of_sums(sums, layers, z_loss)

    def evaluate(self, model: LanguageModel, params: PyTree, batch: Batch) -> Evaluated:
        """Sums over all draws; `accuracy` is of the likeliest token."""

        def of_draw(draw: jax.Array) -> Evaluated:
            noise = noise_of_rows(batch, draw, self.eval_draws)
            # The same for every row, so that none depends on the rows beside it.
            others = _any_tokens(model, jax.random.key(draw), batch, rows=1)
            *rows, drawn = self.masked(batch, noise, others)
            scores, layers = model.apply({"params": params}, *rows, drawn, method="scores")
            count = partial(jnp.sum, dtype=jnp.float32)
            sums = LossSums(-jnp.sum(scores.log_probs), jnp.zeros(()), count(drawn))
            return Evaluated(sums, layers, {"accuracy": count(scores.greedy & drawn)})

        found = jax.lax.map(of_draw, jnp.arange(self.eval_draws))
        layers = jax.tree.map(partial(jnp.mean, axis=0), found.layers)
        sums, figures = jax.tree.map(partial(jnp.sum, axis=0), (found.sums, found.figures))
        return Evaluated(sums, layers, figures)


def _any_tokens(
    model: LanguageModel, key: jax.Array, batch: Batch, rows: int | None = None
) -> jax.Array:
    """[rows, length], every token of the vocabulary equally likely."""
    shape = (rows or len(batch.inputs), batch.inputs.shape[1])
    count = model.num_tokens or model.vocab_size
    return jax.random.randint(key, shape, 0, count, jnp.int32)
