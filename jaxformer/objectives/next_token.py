"""Cross-entropy of the next token."""

from typing import Literal

import jax

from jaxformer.batch import Batch
from jaxformer.model.language_model import LanguageModel
from jaxformer.objectives.base import Loss, ObjectiveConfig, PyTree, Reference, loss_of_sums


class NextTokenConfig(ObjectiveConfig):
    """Σ −log p(target | the tokens before it), over the tokens in the loss."""

    kind: Literal["next_token"] = "next_token"

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
        sums, layers = model.apply(
            {"params": params}, *batch, z_loss=z_loss, method="loss", rngs=rngs
        )
        return loss_of_sums(sums, layers, z_loss)
