"""Distillation of a teacher's distribution over the next token (Hinton et al., 2015,
arXiv:1503.02531)."""

from typing import Annotated, Literal

import jax
from pydantic import Field, PositiveFloat

from jaxformer.batch import Batch
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel
from jaxformer.objectives.base import Loss, ObjectiveConfig, PyTree, Reference
from jaxformer.objectives.requirements import check_last_layer
from jaxformer.ops.token_losses import Heads, distillation
from jaxformer.parallel.own_tokens import over_rows
from jaxformer.parallel.rules import pad_vocabulary


class DistillationConfig(ObjectiveConfig):
    """(1 − weight) · cross-entropy + weight · T² · KL(teacher ‖ student), both distributions
    softmax(logits / T) in the divergence, with the temperature T.

    The teacher's logits are computed in the step, in chunks of tokens.
    """

    kind: Literal["distillation"] = "distillation"
    needs = "any mixer; a teacher, whose forward pass is not counted"

    teacher: str = Field(
        min_length=1,
        description="a run or RUN/checkpoints/STEP with the same tokenizer, and any model",
    )
    temperature: PositiveFloat = Field(
        1.0, description="T, which divides the logits of teacher and student in the divergence"
    )
    weight: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="the share of the divergence in the loss"
    )

    @property
    def reference(self) -> str:
        return self.teacher

    def check(self, model: ModelConfig) -> None:
        check_last_layer(self.kind, model)

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
        assert reference is not None  # `self.reference` names one
        rows = (batch.inputs, batch.positions, batch.segment_ids)
        x, head, layers = model.apply({"params": params}, *rows, method="read", rngs=rngs)
        teacher = reference.model
        taught, taught_head, _ = jax.lax.stop_gradient(
            teacher.apply({"params": reference.params}, *rows, method="read")
        )
        heads = Heads(pad_vocabulary(head), pad_vocabulary(taught_head))

        def sums(heads: Heads, *rows: jax.Array) -> dict[str, jax.Array]:
            return distillation(
                heads,
                *rows,
                num_tokens=model.num_tokens or model.vocab_size,
                temperature=self.temperature,
                softcaps=(model.config.logit_softcap, teacher.config.logit_softcap),
            )

        found = over_rows(sums)(heads, x, taught, batch.targets, batch.loss_mask)
        cross, divergence, squares = found["loss"], found["divergence"], found["log_z_squared"]
        total = (1 - self.weight) * cross + self.weight * divergence + z_loss * squares
        reported = {"loss": cross, "divergence": divergence}
        reported |= {"z_loss": z_loss * squares} if z_loss else {}
        return Loss(total, found["tokens"], reported, layers)
