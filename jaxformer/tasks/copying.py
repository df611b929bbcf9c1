"""Selective copying: what to keep depends on what is seen (Gu and Dao, 2023, arXiv:2312.00752,
section 4.1.1)."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt

from jaxformer.tasks.base import Example, TaskConfig, at


class SelectiveCopyConfig(TaskConfig):
    """Data tokens at random places among blanks, then one mark per data token; the answers at the
    marks are the data tokens in order.

    Id 0 is the blank, 1 the mark, the others data. Published: vocabulary 16, 16 data tokens in
    rows of 4,096. Here: 8 to 16 data tokens in rows of 64 to 128.
    """

    kind: Literal["selective_copy"] = "selective_copy"
    vocab_size: Annotated[int, Field(ge=4)] = Field(
        16, description="the blank, the mark and the data"
    )
    num_tokens: PositiveInt = Field(16, description="data tokens per row")

    @property
    def vocabulary(self) -> int:
        return self.vocab_size

    def check(self, length: int) -> None:
        if length < 2 * self.num_tokens:
            raise ValueError(
                f"num_tokens {self.num_tokens} needs rows of {2 * self.num_tokens} or more, "
                f"sequence_length is {length}"
            )

    def sample(self, random: np.random.Generator, length: int) -> Example:
        inputs = np.zeros(length, np.int64)
        begin = length - self.num_tokens
        data = random.integers(2, self.vocab_size, self.num_tokens)
        inputs[np.sort(random.choice(begin, self.num_tokens, replace=False))] = data
        inputs[begin:] = 1
        return at(inputs, np.arange(begin, length), data)
