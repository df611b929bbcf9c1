"""Cross-entropy of the next token."""

from typing import Annotated, Literal

import jax
from pydantic import Field

from jaxformer.batch import Batch
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel
from jaxformer.objectives.base import Loss, ObjectiveConfig, PyTree, Reference, loss_of_sums


class NextTokenConfig(ObjectiveConfig):
    """Σ −log p(target | the tokens before it), over the tokens in the loss."""

    kind: Literal["next_token"] = "next_token"

    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="the share of a target that is spread evenly over all tokens "
        "(arXiv:1706.03762); losses are reported without it",
    )

    def check(self, model: ModelConfig) -> None:
        if self.label_smoothing and model.depth.weighs_losses:
            raise ValueError(
                f"train.objective.label_smoothing is {self.label_smoothing}, but model.depth "
                f"{model.depth.kind} trains several exits, whose losses are not smoothed; leave it "
                f"out"
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
        options = {"z_loss": z_loss, "label_smoothing": self.label_smoothing}
        sums, layers = model.apply({"params": params}, *batch, **options, method="loss", rngs=rngs)
        return loss_of_sums(sums, layers, z_loss)
