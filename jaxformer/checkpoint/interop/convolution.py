"""Convolutions over a sequence: from torch's layout to ours, and back."""

from dataclasses import dataclass

import numpy as np

from jaxformer.checkpoint.interop.rules import Rule, Shape, Vector, row


@dataclass(frozen=True)
class Taps:
    """torch's [channels, 1, width], whose last tap is the present; in ours it is the first."""

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        return theirs[:, 0, ::-1].T

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours[::-1].T[:, None]


@dataclass(frozen=True)
class ConvolutionKernel:
    """torch's [channels out, channels in, width]; ours has its axes the other way round."""

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        return theirs.T

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours.T


def convolution_rules(theirs: str, ours: str) -> list[Rule]:
    """A short depthwise convolution with biases."""
    return [
        row(f"{theirs}.weight", f"{ours}/kernel", Taps()),
        row(f"{theirs}.bias", f"{ours}/bias", Vector()),
    ]
