"""Autoregression with some tokens hidden from the input, the control for diffusion on repeated data
(Gao et al., 2025, arXiv:2510.04071)."""

from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from jaxformer.batch import Batch
from jaxformer.model.config import ModelConfig
from jaxformer.model.inputs import MASK
from jaxformer.model.language_model import LanguageModel
from jaxformer.objectives.base import Loss, ObjectiveConfig, PyTree, Reference, loss_of_sums
from jaxformer.objectives.denoising import noise_of_batch
from jaxformer.objectives.requirements import check_mask


class TokenDropoutConfig(ObjectiveConfig):
    """Σ −log p(target | the tokens before it that are not hidden), over all targets. Every row has
    a rate, uniform in [0, rate], at which each token but a document's first is hidden.

    Validation hides nothing: it reports the next token's cross-entropy.
    """

    kind: Literal["token_dropout"] = "token_dropout"
    needs = "any mixer; model.inputs.mask"
    keys: ClassVar[tuple[str, ...]] = ("noise",)

    rate: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.2, description="the highest share of a row's tokens that is hidden"
    )

    def check(self, model: ModelConfig) -> None:
        check_mask(self.kind, model)

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
        noise = noise_of_batch(batch, rngs["noise"])
        hidden = (noise.coins < self.rate * noise.offsets) & (batch.positions > 0)
        inputs = jnp.where(hidden, MASK, batch.inputs)
        sums, layers = model.apply(
            {"params": params}, inputs, *batch[1:], z_loss=z_loss, method="loss", rngs=rngs
        )
        return loss_of_sums(sums, layers, z_loss)
