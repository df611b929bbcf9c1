"""The registry of objectives: a new one needs a file, and a line in `OBJECTIVES`."""

from jaxformer.objectives.any_order import AnyOrderConfig
from jaxformer.objectives.base import OBJECTIVES, Loss, ObjectiveConfig, Reference
from jaxformer.objectives.block_diffusion import BlockDiffusionConfig
from jaxformer.objectives.distillation import DistillationConfig
from jaxformer.objectives.masked_diffusion import MaskedDiffusionConfig
from jaxformer.objectives.multi_token import MultiTokenConfig
from jaxformer.objectives.next_token import NextTokenConfig
from jaxformer.objectives.prefix import PrefixConfig
from jaxformer.objectives.token_dropout import TokenDropoutConfig

OBJECTIVES += [
    NextTokenConfig,
    DistillationConfig,
    MaskedDiffusionConfig,
    BlockDiffusionConfig,
    AnyOrderConfig,
    PrefixConfig,
    TokenDropoutConfig,
    MultiTokenConfig,
]

__all__ = [
    "OBJECTIVES",
    "AnyOrderConfig",
    "BlockDiffusionConfig",
    "Loss",
    "MaskedDiffusionConfig",
    "NextTokenConfig",
    "ObjectiveConfig",
    "PrefixConfig",
    "Reference",
    "TokenDropoutConfig",
]
