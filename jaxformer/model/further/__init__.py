"""The registry of further predictions: a new kind needs a file, and a line in `FURTHER`."""

from jaxformer.model.further.base import FURTHER, Further, FurtherConfig
from jaxformer.model.further.heads import Heads, HeadsConfig
from jaxformer.model.further.modules import Modules, ModulesConfig

FURTHER |= {
    HeadsConfig: Heads,
    ModulesConfig: Modules,
}

__all__ = ["FURTHER", "Further", "FurtherConfig"]
