"""The table between a family's tensors and ours: one row per tensor of theirs, read both ways.

Rows name our parameters layer by layer, from the bottom up: `layers/3/mixer/query/kernel` is layer
3's part of a stacked array. Transforms are exact, and mostly views that copy nothing.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

Shape = tuple[int, ...]


class Transform(Protocol):
    """From a tensor of theirs to one of ours, and back."""

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray: ...

    def to_theirs(self, ours: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Same:
    """The same array."""

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        return theirs

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours


@dataclass(frozen=True)
class Vector:
    """The same numbers, in one dimension."""

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        return theirs.reshape(shape)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours.reshape(-1)


@dataclass(frozen=True)
class Matrix:
    """[inputs, outputs]: our first `inputs` dimensions as one, and the others as one."""

    inputs: int = 1

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        return theirs.reshape(shape)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours.reshape(math.prod(ours.shape[: self.inputs]), -1)


@dataclass(frozen=True)
class Linear:
    """torch's [outputs, inputs]: the transpose of `Matrix`."""

    inputs: int = 1

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        return theirs.T.reshape(shape)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return Matrix(self.inputs).to_theirs(ours).T


@dataclass(frozen=True)
class OnePlus:
    """Theirs is the difference from one; as exact as float32 numbers around one are."""

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        return (theirs.astype(np.float32) + 1).reshape(shape)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours - 1


@dataclass(frozen=True)
class Rule:
    """`theirs` is the concatenation of `ours` along its dimension `axis`. Several transforms are one
    for each of ours."""

    theirs: str
    ours: tuple[str, ...]
    transform: Transform | tuple[Transform, ...] = Same()
    axis: int = 0

    def to_ours(self, theirs: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """Our arrays, of the shapes given."""
        sizes = [self._shape(shape)[self.axis] for shape in shapes]
        parts = np.split(theirs, np.cumsum(sizes)[:-1], self.axis) if len(sizes) > 1 else [theirs]
        pairs = zip(parts, shapes, strict=True)
        return [self.transform.to_ours(part, shape) for part, shape in pairs]

    def to_theirs(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        parts = [self.transform.to_theirs(each) for each in ours]
        return np.concatenate(parts, self.axis) if len(parts) > 1 else parts[0]

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """The shape of theirs, from those of ours."""
        parts = [self._shape(shape) for shape in shapes]
        if len(parts) == 1:
            return parts[0]
        whole = list(parts[0])
        whole[self.axis] = sum(part[self.axis] for part in parts)
        return tuple(whole)

    def _shape(self, shape: Shape) -> Shape:
        return self.transform.to_theirs(np.broadcast_to(np.float32(0), shape)).shape


@dataclass(frozen=True)
class Alternating(Rule):
    """The last dimension of `theirs` takes one number of each of `ours` in turn."""

    def to_ours(self, theirs: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [theirs[..., number :: len(shapes)] for number in range(len(shapes))]

    def to_theirs(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(ours, axis=-1).reshape(self.shape([each.shape for each in ours]))

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        return (*shapes[0][:-1], len(shapes) * shapes[0][-1])


def row(theirs: str, ours: str, transform: Transform = Same()) -> Rule:
    """A rule for one tensor of theirs and one of ours."""
    return Rule(theirs, (ours,), transform)


def within(theirs: str, ours: str, rules: Iterable[Rule]) -> list[Rule]:
    """The rules of a part, under the part's names in both models."""
    return [
        replace(
            rule,
            theirs=f"{theirs}.{rule.theirs}",
            ours=tuple(f"{ours}/{path}" for path in rule.ours),
        )
        for rule in rules
    ]
