"""Recall tasks: a token seen before must be repeated."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from jaxformer.tasks.base import Example, TaskConfig, at


class MQARConfig(TaskConfig):
    """Multi-query associative recall (Arora et al., 2023, arXiv:2312.04927): pairs of a key and a
    value, then every key once more, where its value is the answer.

    Keys are the lower half of the vocabulary and values the upper one. The gap between the pairs
    and a key's return follows a power law, p(gap) ∝ gap^(power − 1); other places have random
    tokens. Published: vocabulary 8,192, rows of 64 to 512 with 4 to 64 pairs. Here for minutes on
    a CPU: vocabulary 256, rows of 64 with 4 to 8 pairs.
    """

    kind: Literal["mqar"] = "mqar"
    vocab_size: Annotated[int, Field(ge=4, multiple_of=2)] = Field(
        256, description="half of it keys, half of it values"
    )
    num_pairs: PositiveInt = Field(8, description="pairs of a key and a value per row")
    power: PositiveFloat = Field(
        0.01, description="the exponent of the law of gaps between a pair and its key's return"
    )

    @property
    def vocabulary(self) -> int:
        return self.vocab_size

    def check(self, length: int) -> None:
        if self.num_pairs >= self.vocab_size // 2:
            raise ValueError(
                f"num_pairs {self.num_pairs} needs as many keys, and vocab_size "
                f"{self.vocab_size} has {self.vocab_size // 2 - 1}"
            )
        if length < 4 * self.num_pairs:
            raise ValueError(
                f"num_pairs {self.num_pairs} needs rows of {4 * self.num_pairs} or more, "
                f"sequence_length is {length}"
            )

    def sample(self, random: np.random.Generator, length: int) -> Example:
        half, pairs = self.vocab_size // 2, self.num_pairs
        keys = 1 + random.choice(half - 1, pairs, replace=False)
        values = half + random.choice(half, pairs, replace=False)
        inputs = random.integers(0, self.vocab_size, length)
        inputs[0 : 2 * pairs : 2], inputs[1 : 2 * pairs : 2] = keys, values
        space = (length - 2 * pairs) // 2
        weights = np.arange(1, space + 1) ** (self.power - 1)
        gaps = random.choice(space, pairs, replace=False, p=weights / weights.sum())
        places = 2 * pairs + 2 * gaps
        inputs[places] = keys
        return at(inputs, places, values)


class InductionConfig(TaskConfig):
    """Induction heads (Gu and Dao, 2023, arXiv:2312.00752, section 4.1.2): a mark stands at one
    place, and again at the end, where the token after its first place is the answer.

    Published: vocabulary 16, one answer, trained on rows of 256 and tested on up to 2^20. Here the
    same, with tests on fewer. With more answers, the tokens after the mark are repeated in order.
    """

    kind: Literal["induction"] = "induction"
    vocab_size: Annotated[int, Field(ge=3)] = Field(16, description="the mark and the other tokens")
    answers: PositiveInt = Field(1, description="how many tokens after the mark are repeated")

    @property
    def vocabulary(self) -> int:
        return self.vocab_size

    def check(self, length: int) -> None:
        shortest = 2 * self.answers + 1
        if length < shortest:
            raise ValueError(
                f"answers {self.answers} needs rows of {shortest} tokens or more, sequence_length "
                f"is {length}"
            )

    def sample(self, random: np.random.Generator, length: int) -> Example:
        mark = self.vocab_size - 1
        inputs = random.integers(0, mark, length)
        start = length - self.answers
        place = random.integers(0, start - self.answers)
        inputs[place] = inputs[start] = mark
        answers = inputs[place + 1 : place + 1 + self.answers]
        inputs[start + 1 :] = answers[:-1]
        return at(inputs, np.arange(start, length), answers)
