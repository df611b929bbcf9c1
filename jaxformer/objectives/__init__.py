"""The registry of objectives: a new one needs a file, and a line in `OBJECTIVES`."""

from jaxformer.objectives.any_order import AnyOrderConfig
from jaxformer.objectives.base import OBJECTIVES, Loss, ObjectiveConfig, Reference
from jaxformer.objectives.block_diffusion import BlockDiffusionConfig
from jaxformer.objectives.classes import ClassesConfig
from jaxformer.objectives.contrastive import ContrastiveConfig
from jaxformer.objectives.ctc import CTCConfig
from jaxformer.objectives.distillation import DistillationConfig
from jaxformer.objectives.masked_diffusion import MaskedDiffusionConfig
from jaxformer.objectives.masked_frames import MaskedFramesConfig
from jaxformer.objectives.masked_patches import MaskedPatchesConfig
from jaxformer.objectives.masked_tokens import MaskedTokensConfig
from jaxformer.objectives.multi_token import MultiTokenConfig
from jaxformer.objectives.next_token import NextTokenConfig
from jaxformer.objectives.prefix import PrefixConfig
from jaxformer.objectives.token_dropout import TokenDropoutConfig

OBJECTIVES += [
    NextTokenConfig,
    DistillationConfig,
    MaskedTokensConfig,
    MaskedDiffusionConfig,
    BlockDiffusionConfig,
    AnyOrderConfig,
    PrefixConfig,
    TokenDropoutConfig,
    MultiTokenConfig,
    ClassesConfig,
    CTCConfig,
    ContrastiveConfig,
    MaskedPatchesConfig,
    MaskedFramesConfig,
]

__all__ = [
    "OBJECTIVES",
    "AnyOrderConfig",
    "BlockDiffusionConfig",
    "CTCConfig",
    "ClassesConfig",
    "ContrastiveConfig",
    "Loss",
    "MaskedDiffusionConfig",
    "MaskedFramesConfig",
    "MaskedPatchesConfig",
    "MaskedTokensConfig",
    "NextTokenConfig",
    "ObjectiveConfig",
    "PrefixConfig",
    "Reference",
    "TokenDropoutConfig",
]
