"""Weight norm: a tensor that is stored as lengths and directions (Salimans and Kingma, 2016,
arXiv:1602.07868)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxformer.checkpoint.interop.rules import Rule, Shape


@dataclass(frozen=True)
class WeightNorm(Rule):
    """w_j = v_j · (g_j / ‖v_j‖) for every place j of the last axis: `theirs` is v, and g
    [1, ..., 1, places] is `beside` it.

    What is written is v = w and g = ‖w‖, so that what is read is the same w again, to the last bit:
    a norm is the exact sum of exact squares, rounded, in whatever order its numbers lie.
    """

    def to_ours(self, theirs: Sequence[np.ndarray], shapes: Sequence[Shape]) -> list[np.ndarray]:
        v, lengths = (each.astype(np.float32) for each in theirs)
        return super().to_ours([v * (lengths.reshape(-1) / _norms(v))], shapes)

    def to_theirs(self, ours: Sequence[np.ndarray]) -> list[np.ndarray]:
        [transform], [w] = self._transforms(), ours
        v = transform.to_theirs(w)
        norms = _norms(v)
        # Zeros have no direction: any will do.
        v = np.where(norms > 0, v, np.float32(1))
        return [v, norms.reshape((1,) * (v.ndim - 1) + (-1,))]

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        [shape] = self._shapes(ours)
        return [shape, (1,) * (len(shape) - 1) + shape[-1:]]


def _norms(v: np.ndarray) -> np.ndarray:
    """‖v_j‖ over all but the last axis, float32 [places]."""
    squares = np.square(v.reshape(-1, v.shape[-1]).T, dtype=np.float64)
    return np.array([math.sqrt(math.fsum(row.tolist())) for row in squares], np.float32)
