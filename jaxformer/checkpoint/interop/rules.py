"""The table between a family's tensors and ours, whose rows are read both ways: each is of one
tensor of theirs, or of some that are one of ours.

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
class Leading:
    """Theirs has so many dimensions of 1 before ours."""

    dimensions: int

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        return theirs.reshape(shape)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours.reshape((1,) * self.dimensions + ours.shape)


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
    """`theirs` is the concatenation of `ours` along its dimension `axis`.

    transform: of each of ours; a tuple has one for each.
    groups: theirs interleaves ours: along `axis` it has so many groups, each of them the
        concatenation of an equal share of each of ours.
    beside: more tensors of theirs. The concatenation is then divided equally among all of them.
    """

    theirs: str
    ours: tuple[str, ...]
    transform: Transform | tuple[Transform, ...] = Same()
    axis: int = 0
    groups: int = 1
    beside: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors of theirs, in the order of their numbers in ours."""
        return (self.theirs, *self.beside)

    def to_ours(self, theirs: Sequence[np.ndarray], shapes: Sequence[Shape]) -> list[np.ndarray]:
        """Our arrays, of the shapes given, from those of `names`."""
        whole = np.concatenate(theirs, self.axis) if len(theirs) > 1 else theirs[0]
        theirs_of = self._shapes(shapes)
        if len(shapes) == 1:
            parts = [whole]
        else:
            sizes = [shape[self.axis] // self.groups for shape in theirs_of]
            split = np.split(self._grouped(whole), np.cumsum(sizes)[:-1], self.axis + 1)
            parts = [part.reshape(shape) for part, shape in zip(split, theirs_of, strict=True)]
        each = zip(self._transforms(), parts, shapes, strict=True)
        return [transform.to_ours(part, shape) for transform, part, shape in each]

    def to_theirs(self, ours: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The arrays of `names`."""
        each = zip(self._transforms(), ours, strict=True)
        parts = [transform.to_theirs(array) for transform, array in each]
        whole = parts[0]
        if len(parts) > 1:
            joined = np.concatenate([self._grouped(part) for part in parts], self.axis + 1)
            whole = joined.reshape(self._whole([part.shape for part in parts]))
        return np.split(whole, len(self.names), self.axis) if self.beside else [whole]

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        """The shapes of `names`, from those of ours."""
        whole = list(self._whole(self._shapes(ours)))
        if self.beside:
            whole[self.axis] //= len(self.names)
        return [tuple(whole)] * len(self.names)

    def _transforms(self) -> tuple[Transform, ...]:
        if isinstance(self.transform, tuple):
            return self.transform
        return (self.transform,) * len(self.ours)

    def _grouped(self, array: np.ndarray) -> np.ndarray:
        """Theirs, or a part of it, with `axis` as two dimensions: groups, and what is in one."""
        before, (size, *after) = array.shape[: self.axis], array.shape[self.axis :]
        return array.reshape(*before, self.groups, size // self.groups, *after)

    def _whole(self, parts: Sequence[Shape]) -> Shape:
        """The shape of a concatenation."""
        whole = list(parts[0])
        if len(parts) > 1:
            whole[self.axis] = sum(part[self.axis] for part in parts)
        return tuple(whole)

    def _shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """The shapes of the parts of theirs, one per array of ours."""
        nothing = [np.broadcast_to(np.float32(0), shape) for shape in shapes]
        each = zip(self._transforms(), nothing, strict=True)
        return [transform.to_theirs(array).shape for transform, array in each]


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
            beside=tuple(f"{theirs}.{name}" for name in rule.beside),
        )
        for rule in rules
    ]
