"""The registry of depths: a new one needs a file, and a line in `DEPTHS`."""

from jaxformer.model.depth.base import DEPTHS, Depth, DepthConfig, Visit
from jaxformer.model.depth.exits import ExitsConfig, ExitStack
from jaxformer.model.depth.fixed import FixedConfig
from jaxformer.model.depth.loop import LoopConfig
from jaxformer.model.depth.mixture import Mixture, MixtureConfig
from jaxformer.model.depth.recursion import Recursion, RecursionConfig
from jaxformer.model.depth.stack import Stack
from jaxformer.model.depth.turns import Loop

DEPTHS |= {
    FixedConfig: Stack,
    MixtureConfig: Mixture,
    RecursionConfig: Recursion,
    LoopConfig: Loop,
    ExitsConfig: ExitStack,
}

__all__ = ["DEPTHS", "Depth", "DepthConfig", "FixedConfig", "Visit"]
