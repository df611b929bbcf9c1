"""Adapters merged into what they adapt, for export."""

import numpy as np

from jaxformer.checkpoint.interop.checkpoint_files import Place
from jaxformer.checkpoint.weights import Weights, abstract_leaves
from jaxformer.model.parameter_paths import by_path, from_paths
from jaxformer.parallel.mesh import find_devices, make_mesh
from jaxformer.parallel.rules import replicated


class MergedParameters:
    """Merged parameters, read like those of `ParameterReader`; the whole model is in memory."""

    def __init__(self, weights: Weights) -> None:
        here = replicated(make_mesh({}, devices=find_devices()[:1]))
        wanted = from_paths(abstract_leaves(weights.description(), here))
        self._leaves = by_path(weights.restore(wanted).params)

    def read(self, path: str, place: Place) -> np.ndarray:
        """The part of an array at `place`."""
        return np.asarray(self._leaves[path][place])
