"""Hidden patches of pictures, predicted from those that are seen (SimMIM, Xie et al., 2021,
arXiv:2111.09886), normalised as in MAE (He et al., 2021, arXiv:2111.06377)."""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt

from jaxformer.model.inputs import InputsConfig, PatchesConfig
from jaxformer.objectives.masked_places import MaskedPlacesConfig


class MaskedPatchesConfig(MaskedPlacesConfig):
    """The mean of (prediction − pixel)² over the pixels of patches that are hidden, given the
    others; the pixels of each patch have mean 0 and variance 1.

    Of the blocks of patches of every picture, the share `rate` is hidden, rounded, and at least
    one. Validation draws from each picture itself, so that it has the same loss in every
    evaluation. Classes are not looked at.
    """

    kind: Literal["masked_patches"] = "masked_patches"
    needs = "model.order full, model.inputs patches with mask, model.outputs regression"
    reads: ClassVar[type[InputsConfig]] = PatchesConfig

    rate: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.6, description="the share of a picture that is hidden"
    )
    block: PositiveInt = Field(
        1, description="the height and width of what is hidden together, in patches"
    )
    eval_draws: PositiveInt = Field(
        4, description="how many draws per picture an evaluation is the mean of"
    )

    def blocks(self, inputs: InputsConfig, length: int) -> np.ndarray:
        """Blocks from the upper left corner on; those at the other edges may be cut."""
        grid = inputs.grid
        assert grid is not None
        down, across = np.arange(grid.height) // self.block, np.arange(grid.width) // self.block
        return np.asarray(down[:, None] * (across[-1] + 1) + across).reshape(length)
