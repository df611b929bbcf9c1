"""Optimizers and the schedule of their learning rate."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from jaxformer.schema.base import Schema

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class ScheduleConfig(Schema):
    """The learning rate over the run: a linear warm-up, then what `kind` says.

    `cosine` and `linear` fall over the rest of the run, `constant` stays, and `wsd` stays and
    then falls linearly over the last `decay_steps`.
    """

    kind: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_steps: NonNegativeInt = Field(0, description="steps over which the rate rises from 0")
    final_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0, description="the rate at the end, as a fraction of `learning_rate`"
    )
    decay_steps: PositiveInt | None = Field(
        None, description="for wsd alone; a fifth of the run if null"
    )

    @model_validator(mode="after")
    def _decay_steps_belong_to_wsd(self) -> "ScheduleConfig":
        if self.decay_steps is not None and self.kind != "wsd":
            raise ValueError(f"decay_steps is an option of wsd, not of {self.kind}")
        return self


class OptimizerBase(Schema):
    """What every optimizer has. Weight decay is decoupled and applies to matrices alone."""

    learning_rate: PositiveFloat = Field(1e-3, description="the highest rate of the schedule")
    weight_decay: NonNegativeFloat = Field(
        0.1, description="multiplied by the learning rate; applies to matrices alone"
    )
    clip_norm: PositiveFloat | None = Field(
        1.0, description="the largest norm of the whole gradient; null does not clip"
    )
    schedule: ScheduleConfig = Field(
        ScheduleConfig(), description="how the learning rate changes over the run"
    )


class AdamWConfig(OptimizerBase):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2017, arXiv:1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    b1: Fraction = Field(0.9, description="the decay of the average of gradients")
    b2: Fraction = Field(0.95, description="the decay of the average of squared gradients")
    eps: PositiveFloat = Field(1e-8, description="added to the denominator")


class LionConfig(OptimizerBase):
    """The sign of an average of gradients (Chen et al., 2023, arXiv:2302.06675)."""

    kind: Literal["lion"] = "lion"
    b1: Fraction = Field(0.9, description="the weight of the average of gradients in an update")
    b2: Fraction = Field(0.99, description="the decay of the average of gradients")


class AdafactorConfig(OptimizerBase):
    """Second moments kept by row and column (Shazeer and Stern, 2018, arXiv:1804.04235)."""

    kind: Literal["adafactor"] = "adafactor"
    decay_rate: Fraction = Field(0.8, description="the exponent of the decay of second moments")


class MuonConfig(OptimizerBase):
    """Orthogonalised momentum for the layers' matrices (Jordan et al., 2024,
    kellerjordan.github.io/posts/muon), and AdamW at `adamw_learning_rate` for the rest."""

    kind: Literal["muon"] = "muon"
    learning_rate: PositiveFloat = Field(0.02, description="for the layers' matrices")
    momentum: Fraction = Field(
        0.95, description="the decay of the momentum of the layers' matrices"
    )
    adamw_learning_rate: PositiveFloat = Field(3e-3, description="for everything else")
    b1: Fraction = Field(0.9, description="AdamW's decay of the average of gradients")
    b2: Fraction = Field(0.95, description="AdamW's decay of the average of squared gradients")
    eps: PositiveFloat = Field(1e-8, description="added to AdamW's denominator")


class SGDConfig(OptimizerBase):
    """Gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    momentum: Fraction = Field(0.9, description="the decay of the sum of gradients")


OptimizerUnion = Annotated[
    AdamWConfig | LionConfig | AdafactorConfig | MuonConfig | SGDConfig,
    Field(discriminator="kind"),
]
