"""Every token passes every layer once."""

from collections.abc import Sequence
from typing import Literal

from jaxformer.model.depth.base import DepthConfig


class FixedConfig(DepthConfig):
    """Every token passes every layer once."""

    kind: Literal["fixed"] = "fixed"
    has_first = True
    has_stages = True
    sees_any_order = True

    def layers_of_path(
        self, path: str, num_layers: int, pattern_length: int
    ) -> Sequence[int] | None:
        match path.split("/"):
            case ["stack", part, layer, *_] if layer.startswith("layer_"):
                return layers_of_part(part, layer, num_layers, pattern_length)
        return None


def layers_of_part(
    part: str, layer: str, num_layers: int, pattern_length: int, first: int = 0
) -> Sequence[int]:
    """The layers that `groups/layer_i` or `tail/layer_i` of a `Stack` holds.

    Args:
        num_layers: of the stack.
        first: the number of its lowest layer.
    """
    index = int(layer.removeprefix("layer_"))
    end_of_groups = num_layers - num_layers % pattern_length
    if part == "groups":
        return range(first + index, first + end_of_groups, pattern_length)
    return [first + end_of_groups + index]
