"""A needle in real text: one sentence in a long text must be found again (Kamradt, 2023,
github.com/gkamradt/LLMTest_NeedleInAHaystack)."""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt

from jaxformer.tasks.base import Encode, Example, Sampler, TaskConfig, Text, at

ADJECTIVES = ("amber", "bitter", "crooked", "distant", "eager", "frozen", "gentle", "hollow")
NOUNS = ("anchor", "bridge", "candle", "dragon", "engine", "forest", "garden", "harbour")


class NeedleConfig(TaskConfig):
    """`The secret number of the WORDS is NUMBER.` somewhere in a text, which ends with the
    question; the number is the answer.

    The text is the configuration's source.
    """

    kind: Literal["needle"] = "needle"
    needs_text: ClassVar[bool] = True
    digits: PositiveInt = Field(5, description="digits of the secret number")
    depth: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        None,
        description="where the sentence stands, from 0 (the beginning) to 1 (right before the "
        "question); anywhere if null",
    )

    @property
    def vocabulary(self) -> int:
        return 0  # the text's

    def sample_from(self, text: Text, encode: Encode) -> Sampler:
        def sample(random: np.random.Generator, length: int) -> Example:
            name = f"{random.choice(ADJECTIVES)} {random.choice(NOUNS)}"
            number = "".join(random.choice(list("0123456789"), self.digits))
            question = f"\nThe secret number of the {name} is"
            needle, asked, answer = map(encode, (f"{question} {number}.\n", question, f" {number}"))
            room = length + 1 - len(needle) - len(asked) - len(answer)
            if not 0 < room <= len(text):
                raise ValueError(
                    f"the needle and its question take {length + 1 - room} tokens and the source "
                    f"has {len(text):,}; sequence_length {length} is "
                    f"{'too short' if room < 1 else 'longer than both together'}"
                )
            begin = random.integers(0, len(text) - room + 1)
            hay = text[begin : begin + room]
            place = round((random.uniform() if self.depth is None else self.depth) * room)
            row = np.concatenate([hay[:place], needle, hay[place:], asked, answer])
            places = np.arange(length - len(answer), length)
            return at(row[:-1], places, row[places + 1])

        return sample
