"""The registry of depths: a new one needs a file, and a line in `DEPTHS`."""

from jaxformer.model.depth.base import DEPTHS, Depth, DepthConfig, Visit
from jaxformer.model.depth.fixed import FixedConfig
from jaxformer.model.depth.stack import Stack

DEPTHS |= {
    FixedConfig: Stack,
}

__all__ = ["DEPTHS", "Depth", "DepthConfig", "FixedConfig", "Visit"]
