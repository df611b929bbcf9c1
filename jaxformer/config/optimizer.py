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

from jaxformer.schema import Schema

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class ScheduleConfig(Schema):
    """The learning rate's factor: a linear warm-up from 0 to 1, then by `kind` to `final_fraction`.

    `cosine` and `linear` fall over the rest of the run, `constant` stays, and `wsd` stays and
    then falls linearly over the last `decay_steps`.
    """

    kind: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    final_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    decay_steps: PositiveInt | None = Field(
        None, description="wsd only; a fifth of the run if not given"
    )

    @model_validator(mode="after")
    def _decay_steps_belong_to_wsd(self) -> "ScheduleConfig":
        if self.decay_steps is not None and self.kind != "wsd":
            raise ValueError(f"decay_steps is an option of wsd, not of {self.kind}")
        return self


class OptimizerBase(Schema):
    """What every optimizer has. Weight decay is decoupled and applies to matrices alone."""

    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.1
    clip_norm: PositiveFloat | None = 1.0
    schedule: ScheduleConfig = ScheduleConfig()


class AdamWConfig(OptimizerBase):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2017, arXiv:1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    b1: Fraction = 0.9
    b2: Fraction = 0.95
    eps: PositiveFloat = 1e-8


class LionConfig(OptimizerBase):
    """The sign of an average of gradients (Chen et al., 2023, arXiv:2302.06675)."""

    kind: Literal["lion"] = "lion"
    b1: Fraction = 0.9
    b2: Fraction = 0.99


class AdafactorConfig(OptimizerBase):
    """Second moments kept by row and column (Shazeer and Stern, 2018, arXiv:1804.04235)."""

    kind: Literal["adafactor"] = "adafactor"
    decay_rate: Fraction = 0.8


class MuonConfig(OptimizerBase):
    """Orthogonalised momentum for the layers' matrices (Jordan et al., 2024,
    kellerjordan.github.io/posts/muon), and AdamW at `adamw_learning_rate` for the rest."""

    kind: Literal["muon"] = "muon"
    learning_rate: PositiveFloat = 0.02
    momentum: Fraction = 0.95
    adamw_learning_rate: PositiveFloat = 3e-3
    b1: Fraction = 0.9
    b2: Fraction = 0.95
    eps: PositiveFloat = 1e-8


class SGDConfig(OptimizerBase):
    """Gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    momentum: Fraction = 0.9


OptimizerUnion = Annotated[
    AdamWConfig | LionConfig | AdafactorConfig | MuonConfig | SGDConfig,
    Field(discriminator="kind"),
]
