"""The registry of residuals: a new one needs a file, and a line in `RESIDUALS`."""

from collections.abc import Sequence

from jaxformer.model.layer import Layer
from jaxformer.model.norms import NormConfig
from jaxformer.model.placements import Number
from jaxformer.model.residuals.attention import AttentionResiduals, AttentionResidualsConfig
from jaxformer.model.residuals.base import RESIDUALS, Residual, ResidualConfig, Stream
from jaxformer.model.residuals.hyper_connections import HyperConnections, HyperConnectionsConfig
from jaxformer.model.residuals.manifold import ManifoldConfig, ManifoldConnections
from jaxformer.model.residuals.parallel import ParallelBlock, ParallelBlockConfig
from jaxformer.model.residuals.plain import Plain, PlainConfig, scaled
from jaxformer.model.residuals.values import ValueResidual, ValueResidualConfig
from jaxformer.model.residuals.weighted import LayerScale, LayerScaleConfig, ReZero, ReZeroConfig

RESIDUALS |= {
    PlainConfig: Plain,
    ReZeroConfig: ReZero,
    LayerScaleConfig: LayerScale,
    ParallelBlockConfig: ParallelBlock,
    ValueResidualConfig: ValueResidual,
    HyperConnectionsConfig: HyperConnections,
    ManifoldConfig: ManifoldConnections,
    AttentionResidualsConfig: AttentionResiduals,
}

__all__ = [
    "RESIDUALS",
    "Number",
    "PlainConfig",
    "Residual",
    "ResidualConfig",
    "Stream",
    "build_residual",
    "scaled",
]


def build_residual(
    config: ResidualConfig, norm: NormConfig, layers: Sequence[Layer] = ()
) -> Residual:
    """The residual that `config.kind` names, of a stream that passes these layers."""
    return RESIDUALS[type(config)](config, norm, layers=tuple(layers))
