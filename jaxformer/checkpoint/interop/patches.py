"""Pictures in patches, as Vision Transformers of transformers have them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxformer.checkpoint.interop.hub_config import HubConfig, shown
from jaxformer.checkpoint.interop.rules import Shape
from jaxformer.errors import UserError
from jaxformer.model.inputs import PatchesConfig
from jaxformer.model.trunk_config import TrunkConfig

Json = dict[str, Any]


@dataclass(frozen=True)
class PatchKernel:
    """torch's [d_model, channels, height, width] of a convolution whose strides are its sides; ours
    is [height · width · channels, d_model]."""

    patch: int

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        return theirs.transpose(2, 3, 1, 0).reshape(shape)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours.reshape(self.patch, self.patch, -1, ours.shape[1]).transpose(3, 2, 0, 1)


def patches_of(hub: HubConfig) -> Json:
    """Our `inputs` for pictures in patches.

    Raises:
        UserError: something else than square patches.
    """
    size, (patch, across) = _sides(hub, "image_size"), _sides(hub, "patch_size")
    if patch != across:
        raise UserError(f"{hub.name} has patch_size [{patch}, {across}]; allowed: square patches")
    return {
        "kind": "patches",
        "size": size,
        "channels": hub.count("num_channels"),
        "patch": patch,
    }


def number_of_patches(inputs: Json) -> int:
    """How many patches pictures have, given our `inputs`."""
    height, width = (side // inputs["patch"] for side in inputs["size"])
    return height * width


def sizes_of_patches(model: TrunkConfig) -> Json:
    """The keys of config.json for them.

    Raises:
        UserError: the inputs are others.
    """
    inputs = model.inputs
    if not isinstance(inputs, PatchesConfig):
        raise UserError(f"inputs {inputs.kind}, where this family has patches")
    return {
        "image_size": inputs.size[0] if len({*inputs.size}) == 1 else list(inputs.size),
        "patch_size": inputs.patch,
        "num_channels": inputs.channels,
    }


def _sides(hub: HubConfig, key: str) -> list[int]:
    """Height and width, of which one number is both.

    Raises:
        UserError: something else.
    """
    value = hub.take(key)
    sides = [value, value] if type(value) is int else value
    if not isinstance(sides, list | tuple) or len(sides) != 2:
        raise UserError(
            f"{hub.name} has {key} {shown(value)}; allowed: a number, or [height, width]"
        )
    if any(type(side) is not int or not 0 < side <= 4096 for side in sides):
        raise UserError(f"{hub.name} has {key} {shown(value)}; allowed: from 1 to 4096 pixels")
    return list(sides)
