"""A task whose tokens need unequal amounts of computation, and say how much."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from jaxformer.tasks.base import Example, TaskConfig, everywhere


class UnequalConfig(TaskConfig):
    """Sums of squares that are as deep as the row says, among tokens that are only copied.

    A row is made of segments: an operator of depth D, drawn from 0, …, depth, and then numbers
    a_0, a_1, … below `modulus`. After number a_i the answer is the value v of

        v ← a_{i−d};   v ← v² + a_j mod modulus   for j = i − d + 1, …, i;   d = min(D, i),

    so d steps depend on each other. With d = 0 it is the number itself, and after an operator it is
    the operator itself. A model whose tokens may leave early should let the easy ones leave earlier
    (Graves, 2016, arXiv:1603.08983; Schuster et al., 2022, arXiv:2207.07061); `difficulty` tells
    which those are.
    """

    kind: Literal["unequal"] = "unequal"
    modulus: Annotated[int, Field(ge=2)] = Field(5, description="numbers are below it")
    depth: Annotated[int, Field(ge=1)] = Field(
        4, description="the deepest operator: how many steps depend on each other"
    )
    segment_length: Annotated[int, Field(ge=2)] = Field(
        8, description="an operator and the numbers that it applies to"
    )

    @property
    def vocabulary(self) -> int:
        return self.modulus + self.depth + 1

    def sample(self, random: np.random.Generator, length: int) -> Example:
        inputs = random.integers(0, self.modulus, length)
        operators = inputs[:: self.segment_length]
        operators[:] = self.modulus + random.integers(0, self.depth + 1, len(operators))
        targets = inputs.copy()
        for place, steps in enumerate(self.difficulty(inputs)):
            value = inputs[place - steps]
            for number in inputs[place - steps + 1 : place + 1]:
                value = (value**2 + number) % self.modulus
            targets[place] = value
        return everywhere(inputs, targets)

    def difficulty(self, inputs: np.ndarray) -> np.ndarray:
        """How many steps, one after another, lead to each answer: inputs [..., length] → [...,
        length], 0 for answers that repeat their token."""
        inputs = np.asarray(inputs)
        places = np.arange(inputs.shape[-1])
        since = places % self.segment_length  # the operator
        announced = inputs[..., places - since] - self.modulus
        return np.where(since == 0, 0, np.minimum(announced, since - 1))
