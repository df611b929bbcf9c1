"""The registry of objectives: a new one needs a file, and a line in `OBJECTIVES`."""

from jaxformer.objectives.base import OBJECTIVES, Loss, ObjectiveConfig, Reference
from jaxformer.objectives.distillation import DistillationConfig
from jaxformer.objectives.next_token import NextTokenConfig

OBJECTIVES += [
    NextTokenConfig,
    DistillationConfig,
]

__all__ = ["OBJECTIVES", "Loss", "NextTokenConfig", "ObjectiveConfig", "Reference"]
