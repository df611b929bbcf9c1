"""Cross-entropy of several tokens ahead (Gloeckle et al., 2024, arXiv:2404.19737; DeepSeek-V3,
2024, arXiv:2412.19437, section 2.2)."""

from typing import Literal

import jax
from pydantic import Field, NonNegativeFloat

from jaxformer.batch import Batch
from jaxformer.model.accounting import flops_per_token, further_flops_per_token
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.several_ahead import losses_ahead
from jaxformer.objectives.base import Loss, ObjectiveConfig, PyTree, Reference
from jaxformer.objectives.requirements import check_last_layer


class MultiTokenConfig(ObjectiveConfig):
    """L = L_1 + weight · (1/n) Σ_{k=1}^{n} L_{k+1}, with L_j = Σ −log p(token j ahead) over the
    tokens in the loss, and the n predictions of `model.further` (DeepSeek-V3, equation 25).

    The loss of a token is counted once per prediction that reaches it within its document and row.
    Meta's sum of all losses alike is weight = n. The gradient is that of L divided by the number of
    next tokens in the loss. Validation has the next token's loss alone.
    """

    kind: Literal["multi_token"] = "multi_token"
    trains_further = True
    needs = "any mixer; model.further"
    decoder = "one token after another, with its predictions as the draft"

    weight: NonNegativeFloat = Field(
        0.3, description="the weight of the mean of the losses of the tokens after the next one"
    )

    def check(self, model: ModelConfig) -> None:
        check_last_layer(self.kind, model)
        if model.further is None:
            raise ValueError(
                "train.objective is multi_token, but model.further is null, so nothing predicts "
                "the tokens after the next one; give model.further, such as {kind: modules, "
                "count: 1}"
            )

    def flops(self, model: LanguageModel, length: int) -> float:
        return flops_per_token(model, length) + further_flops_per_token(model, length)

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
        """Metrics: `loss`, `z_loss`, which the next token alone has, and `loss_2`, `loss_3`, …, the
        mean loss of the token two, three, … places ahead, over those that are predicted."""
        (first, *further), layers = model.apply(
            {"params": params}, *batch, z_loss=z_loss, method=losses_ahead, rngs=rngs
        )
        total = first.loss + first.z_loss
        if further:
            total += self.weight / len(further) * sum(each.loss for each in further)
        reported = {"loss": first.loss} | ({"z_loss": first.z_loss} if z_loss else {})
        means = {f"loss_{ahead}": (each.loss, each.tokens) for ahead, each in enumerate(further, 2)}
        return Loss(total, first.tokens, reported, layers, means)
