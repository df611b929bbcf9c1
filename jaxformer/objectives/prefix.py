"""A prefix language model: T5 (Raffel et al., 2020, arXiv:1910.10683, section 3.2.1), UniLM (Dong
et al., 2019, arXiv:1905.03197)."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxformer.batch import Batch
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel
from jaxformer.objectives.base import Loss, ObjectiveConfig, PyTree, Reference, loss_of_sums
from jaxformer.objectives.requirements import ANY_ORDER, check_any_order
from jaxformer.ops.attention import Order


class PrefixConfig(ObjectiveConfig):
    """Σ −log p(target | the tokens before it), over the targets after a prefix of each document,
    whose tokens see each other in both directions.

    Of a document's n inputs, 1 … n are its prefix, all equally likely. Validation and decoding take
    the first token alone for it, so that validation reports the next token's cross-entropy.
    """

    kind: Literal["prefix"] = "prefix"
    needs = ANY_ORDER
    keys: ClassVar[tuple[str, ...]] = ("noise",)
    gives_order: ClassVar[bool] = True

    def check(self, model: ModelConfig) -> None:
        check_any_order(self.kind, model)

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
        shares = jax.random.uniform(rngs["noise"], batch.inputs.shape, jnp.float32)
        prefix = prefix_lengths(batch, shares)
        is_after = batch.positions >= prefix - 1  # the last token of the prefix predicts
        order = Order(
            jnp.where(batch.positions < prefix, 0, batch.positions),
            private=jnp.zeros(prefix.shape, jnp.bool_),
        )
        sums, layers = model.apply(
            {"params": params},
            *batch._replace(loss_mask=batch.loss_mask & is_after),
            z_loss=z_loss,
            order=order,
            method="loss",
            rngs=rngs,
        )
        return loss_of_sums(sums, layers, z_loss)


def prefix_lengths(batch: Batch, shares: jax.Array) -> jax.Array:
    """[rows, length], the same for all n tokens of a document: 1 + ⌊share · n⌋, with the share
    in [0, 1) of its first token."""
    length = batch.positions.shape[1]

    def of_row(positions: jax.Array, segment_ids: jax.Array, shares: jax.Array) -> jax.Array:
        lasts = jax.ops.segment_max(positions, segment_ids, num_segments=length + 1)
        starts = jnp.arange(length, dtype=jnp.int32) - positions
        return 1 + jnp.floor(shares[starts] * (1 + lasts[segment_ids])).astype(jnp.int32)

    return jax.vmap(of_row)(jnp.asarray(batch.positions), jnp.asarray(batch.segment_ids), shares)
