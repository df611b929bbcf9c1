"""The registry of inputs: a new one needs a file, and a line in `INPUTS`."""

from jaxformer.model.inputs.base import INPUTS, MASK, Inputs, InputsConfig, Masked, Share
from jaxformer.model.inputs.chunks import Chunks, ChunksConfig
from jaxformer.model.inputs.frames import Frames, FramesConfig
from jaxformer.model.inputs.patches import Patches, PatchesConfig
from jaxformer.model.inputs.raw import Raw, RawConfig
from jaxformer.model.inputs.recordings import RecordingsConfig
from jaxformer.model.inputs.shared_tokens import SharedTokens, SharedTokensConfig
from jaxformer.model.inputs.tokens import Tokens, TokensConfig
from jaxformer.model.inputs.typed_tokens import TypedTokens, TypedTokensConfig

INPUTS |= {
    TokensConfig: Tokens,
    TypedTokensConfig: TypedTokens,
    SharedTokensConfig: SharedTokens,
    ChunksConfig: Chunks,
    PatchesConfig: Patches,
    FramesConfig: Frames,
    RawConfig: Raw,
}

__all__ = [
    "INPUTS",
    "MASK",
    "Chunks",
    "ChunksConfig",
    "Frames",
    "FramesConfig",
    "Inputs",
    "InputsConfig",
    "Masked",
    "Patches",
    "PatchesConfig",
    "Raw",
    "RawConfig",
    "RecordingsConfig",
    "Share",
    "SharedTokens",
    "SharedTokensConfig",
    "Tokens",
    "TokensConfig",
    "TypedTokens",
    "TypedTokensConfig",
]
