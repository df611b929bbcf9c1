"""Contrastive learning of pairs: of all texts and pictures of a batch, which belong together
(SigLIP, Zhai et al., 2023, arXiv:2303.15343; CLIP, Radford et al., 2021, arXiv:2103.00020)."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from pydantic import Field, PositiveFloat

from jaxformer.batch import Batch
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel
from jaxformer.objectives.base import Evaluated, Loss, ObjectiveConfig, PyTree, Reference
from jaxformer.objectives.requirements import check_last_layer
from jaxformer.ops.contrastive import LOSSES, NO_PAIR, Sides, Similarity
from jaxformer.ops.cross_entropy import LossSums
from jaxformer.parallel.among_rows import among_rows


class ContrastiveConfig(ObjectiveConfig):
    """With logits l_ij of text i and picture j, per pair: Σ_j −log σ(±l_ij), with + for the pair's
    own picture (sigmoid); or half the cross-entropy of its picture among all, and half that of its
    text among all (softmax). Every row of a batch, on whatever device, is compared with all others,
    so that the loss depends on train.batch_size.
    """

    kind: Literal["contrastive"] = "contrastive"
    needs = "model.encoder, model.outputs contrastive"
    decoder = "none: jaxformer eval"
    instead = "predict RUN FILE --text TEXT --text TEXT"
    figure = "batch_accuracy"
    is_causal = False
    of_rows = True
    compares_rows = True
    sees_whole_rows = True
    orders = ("causal", "full")

    form: Literal["sigmoid", "softmax"] = Field(
        "sigmoid",
        description="sigmoid: each text and picture is a pair or none, as in SigLIP; softmax: each "
        "picture has one of the batch's texts, and each text one of its pictures, as in CLIP",
    )
    most_scale: PositiveFloat | None = Field(
        None, description="the most that the learned scale may be, 100 in CLIP; null for any"
    )

    def check(self, model: ModelConfig) -> None:
        check_last_layer(self.kind, model)
        if not model.outputs.reads_source:
            raise ValueError(
                f"train.objective is contrastive, which compares both sides of pairs, but "
                f"model.outputs is {model.outputs.kind}; give model.outputs={{kind: contrastive, "
                f"width: ...}}, and a model.encoder"
            )
        if model.reads != "images":
            raise ValueError(
                f"train.objective is contrastive, which is for pictures with texts, but "
                f"model.encoder reads {model.reads}; give model.encoder.inputs={{kind: patches, "
                f"...}}"
            )

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
        sides, similarity, layers = _compared(model, params, batch, rngs)
        if self.most_scale is not None:
            similarity = similarity._replace(scale=jnp.minimum(similarity.scale, self.most_scale))
        total, count = self._sums(sides, similarity, batch)
        one = jnp.ones((), jnp.float32)
        means = {name: (value, one) for name, value in similarity._asdict().items()}
        return Loss(total, count, {"loss": total}, layers, jax.lax.stop_gradient(means))

    def evaluate(self, model: LanguageModel, params: PyTree, batch: Batch) -> Evaluated:
        """`batch_accuracy` is the share of texts and pictures for which none of the others in the
        batch is nearer than their own."""
        sides, similarity, layers = _compared(model, params, batch, {})
        total, count = self._sums(sides, similarity, batch)
        there = jnp.asarray(batch.loss_mask)[:, 0]
        logits = jnp.where(there[:, None] & there, sides.x @ sides.y.T, -jnp.inf)
        own = jnp.diagonal(logits)
        right = [own >= jnp.max(logits, axis=axis) for axis in (0, 1)]
        found = jnp.sum(jnp.stack(right) & there, dtype=jnp.float32) / len(right)
        sums = LossSums(total, jnp.zeros(()), count)
        return Evaluated(sums, layers, {"batch_accuracy": found})

    def _sums(
        self, sides: Sides, similarity: Similarity, batch: Batch
    ) -> tuple[jax.Array, jax.Array]:
        """The loss over all pairs of a batch, and how many there are."""
        there = jnp.asarray(batch.loss_mask)[:, 0]
        pairs = jnp.where(there, jnp.arange(len(there), dtype=jnp.int32), NO_PAIR)
        total = among_rows(LOSSES[self.form])(similarity, sides, pairs)
        return total, jnp.sum(there, dtype=jnp.float32)


def _compared(
    model: LanguageModel, params: PyTree, batch: Batch, rngs: dict[str, Any]
) -> tuple[Sides, Similarity, Any]:
    rows = (batch.inputs, batch.positions, batch.segment_ids)
    found: tuple = model.apply({"params": params}, *rows, method="compare", rngs=rngs)
    return found
