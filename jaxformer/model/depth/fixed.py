"""Every token passes every layer once."""

from collections.abc import Sequence
from typing import Literal

from jaxformer.model.depth.base import DepthConfig


class FixedConfig(DepthConfig):
    """Every token passes every layer once."""

    kind: Literal["fixed"] = "fixed"
    has_stages = True

    def layers_of_path(
        self, path: str, num_layers: int, pattern_length: int
    ) -> Sequence[int] | None:
        match path.split("/"):
            case ["stack", part, layer, *_]:
                first = int(layer.removeprefix("layer_"))
                stacked = num_layers - num_layers % pattern_length
                if part == "groups":
                    return range(first, stacked, pattern_length)
                return [stacked + first]
        return None
