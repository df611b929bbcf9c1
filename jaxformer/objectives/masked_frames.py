"""Hidden stretches of spectrograms, predicted from what is heard around them (Mockingjay, Liu et
al., 2019, arXiv:1910.12638), each of which is as long as in wav2vec 2.0 (Baevski et al., 2020,
arXiv:2006.11477) by default."""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt

from jaxformer.model.inputs import FramesConfig, InputsConfig
from jaxformer.objectives.masked_places import MaskedPlacesConfig


class MaskedFramesConfig(MaskedPlacesConfig):
    """The mean of (prediction − number)² over the log-mel frames of places that are hidden, given
    the others; each mel band of a recording has mean 0 and variance 1.

    Of the stretches of `block` places of every row, the share `rate` is hidden, rounded, and at
    least one. Validation draws from each recording itself, so that it has the same loss in every
    evaluation. Texts and classes are not looked at.
    """

    kind: Literal["masked_frames"] = "masked_frames"
    needs = "model.order full, model.inputs frames with mask, model.outputs regression"
    reads: ClassVar[type[InputsConfig]] = FramesConfig

    rate: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.5, description="the share of a row that is hidden"
    )
    block: PositiveInt = Field(
        5, description="how many places are hidden together; 5 are 0.2 s of 40 ms each"
    )
    eval_draws: PositiveInt = Field(
        4, description="how many draws per recording an evaluation is the mean of"
    )

    def blocks(self, inputs: InputsConfig, length: int) -> np.ndarray:
        return np.arange(length) // self.block
