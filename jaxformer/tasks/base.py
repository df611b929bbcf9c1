"""What a synthetic task is: rows made from random numbers, with some targets to predict."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from jaxformer.schema.base import Schema


class Example(NamedTuple):
    """One row, each array [length]: where mask[t], targets[t] is the answer after inputs[..t]."""

    inputs: np.ndarray  # int32
    targets: np.ndarray  # int32
    mask: np.ndarray  # bool


class Text(Protocol):
    """Token ids, a slice of which is an array."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> np.ndarray: ...


Sampler = Callable[[np.random.Generator, int], Example]
Encode = Callable[[str], np.ndarray]


class TaskConfig(Schema):
    """A task draws a row of any length from a generator of random numbers; its fields set how
    hard the row is. Rows are endless, so a model never sees one twice."""

    kind: str
    needs_text: ClassVar[bool] = False

    @property
    def vocabulary(self) -> int:
        """How many token ids the rows use."""
        raise NotImplementedError

    def check(self, length: int) -> None:
        """Check that rows of `length` can be made.

        Raises:
            ValueError: they cannot; the message says which lengths can.
        """

    def sample(self, random: np.random.Generator, length: int) -> Example:
        """One row."""
        raise NotImplementedError

    def sample_from(self, text: Text, encode: Encode) -> Sampler:
        """A sampler of rows about `text`, the token ids of a source, for tasks that `needs_text`;
        `encode` turns a sentence into ids."""
        raise NotImplementedError


def everywhere(inputs: np.ndarray, targets: np.ndarray) -> Example:
    """A row whose every position has a target."""
    return Example(inputs.astype(np.int32), targets.astype(np.int32), np.ones(len(inputs), bool))


def at(inputs: np.ndarray, places: np.ndarray, answers: np.ndarray) -> Example:
    """A row whose positions `places` have the targets `answers`; no others have one."""
    targets, mask = np.zeros(len(inputs), np.int32), np.zeros(len(inputs), bool)
    targets[places], mask[places] = answers, True
    return Example(inputs.astype(np.int32), targets, mask)
