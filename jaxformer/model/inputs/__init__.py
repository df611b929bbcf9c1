"""The registry of inputs: a new one needs a file, and a line in `INPUTS`."""

from jaxformer.model.inputs.base import INPUTS, MASK, Inputs, InputsConfig, Share
from jaxformer.model.inputs.chunks import Chunks, ChunksConfig
from jaxformer.model.inputs.tokens import Tokens, TokensConfig

INPUTS |= {
    TokensConfig: Tokens,
    ChunksConfig: Chunks,
}

__all__ = [
    "INPUTS",
    "MASK",
    "Chunks",
    "ChunksConfig",
    "Inputs",
    "InputsConfig",
    "Share",
    "Tokens",
    "TokensConfig",
]
