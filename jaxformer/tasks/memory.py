"""Memorising facts in the weights (Poli et al., 2024, arXiv:2403.17844, MAD's `memorization`)."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, NonNegativeInt

from jaxformer.tasks.base import Example, TaskConfig, everywhere


class MemorizeConfig(TaskConfig):
    """Every key has one value, the same in all rows; the value is the answer and never shown.

    Keys are the lower half of the vocabulary and values the upper one. Published:
    vocabulary 256 to 8,192, rows of 32.
    """

    kind: Literal["memorize"] = "memorize"
    vocab_size: Annotated[int, Field(ge=4, multiple_of=2)] = Field(
        256, description="half of it keys, half of it values"
    )
    facts: NonNegativeInt = Field(
        0, description="the seed that picks which value goes with which key"
    )

    @property
    def vocabulary(self) -> int:
        return self.vocab_size

    def sample(self, random: np.random.Generator, length: int) -> Example:
        half = self.vocab_size // 2
        value_of = half + np.random.default_rng(self.facts).permutation(half)
        keys = random.integers(0, half, length)
        return everywhere(keys, value_of[keys])
