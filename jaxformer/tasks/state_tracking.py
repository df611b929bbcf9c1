"""Tasks of state tracking: at every position, the state that the tokens up to it lead to.

Every prefix has its answer, so a row trains all shorter lengths as well.
"""

import itertools
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from jaxformer.tasks.base import Example, TaskConfig, everywhere

Permutation = tuple[int, ...]


class ParityConfig(TaskConfig):
    """Whether the number of ones so far is odd. Finite-precision Transformers and recurrences with
    decays in [0, 1] cannot do it at every length (Grazzi et al., 2024, arXiv:2411.12537).

    Published: trained on lengths up to 40, tested up to 256.
    """

    kind: Literal["parity"] = "parity"

    @property
    def vocabulary(self) -> int:
        return 2

    def sample(self, random: np.random.Generator, length: int) -> Example:
        bits = random.integers(0, 2, length)
        return everywhere(bits, np.cumsum(bits) % 2)


class WordProblemConfig(TaskConfig):
    """The product of the group's elements so far, g_1 · g_2 · … · g_t (Merrill et al., 2024,
    arXiv:2404.08819). S3 is solvable; A5 and S5 are not, and constant-depth threshold circuits
    cannot solve their word problem unless TC0 = NC1.

    Published: Siems et al., 2025 (arXiv:2502.10297), trained on 128 and tested on 512.
    """

    kind: Literal["word_problem"] = "word_problem"
    group: Literal["S3", "S5", "A5"] = Field(
        "S3", description="the group whose elements are multiplied"
    )

    @property
    def vocabulary(self) -> int:
        return len(_product_table(self.group))

    def sample(self, random: np.random.Generator, length: int) -> Example:
        table = _product_table(self.group)
        elements = random.integers(0, len(table), length)
        products = np.empty(length, np.int64)
        state = 0  # the identity
        for place, element in enumerate(elements):
            state = products[place] = table[state, element]
        return everywhere(elements, products)


class ModularArithmeticConfig(TaskConfig):
    """The value, modulo `modulus`, of the sum so far: numbers joined by +, − and ×, where ×
    binds tighter (Delétang et al., 2023, arXiv:2207.02098). At a number, the answer is the value up
    to and including it; at an operator, the value before it.

    Published: modulus 5, trained on lengths up to 40, tested up to 500.
    """

    kind: Literal["modular_arithmetic"] = "modular_arithmetic"
    modulus: Annotated[int, Field(ge=2)] = Field(5, description="sums are taken modulo this number")

    @property
    def vocabulary(self) -> int:
        return self.modulus + 3

    def sample(self, random: np.random.Generator, length: int) -> Example:
        modulus = self.modulus
        inputs = random.integers(0, modulus, length)
        inputs[1::2] = modulus + random.integers(0, 3, length // 2)
        values = np.empty(length, np.int64)
        whole, term = 0, 0  # the finished sum, and the product that may continue
        for place, token in enumerate(inputs):
            if place % 2 == 0:
                operator = inputs[place - 1] - modulus if place else 0
                if operator == 2:
                    term = term * token % modulus
                else:
                    whole, term = (whole + term) % modulus, -token if operator else token
            values[place] = (whole + term) % modulus
        return everywhere(inputs, values)


@lru_cache(maxsize=3)
def _product_table(group: str) -> np.ndarray:
    """[elements, elements]: the number of each product; the identity has number 0."""
    degree = int(group[1:])
    elements = [
        permutation
        for permutation in itertools.permutations(range(degree))
        if group[0] == "S" or _is_even(permutation)
    ]
    number = {permutation: index for index, permutation in enumerate(elements)}
    return np.array([[number[tuple(b[image] for image in a)] for b in elements] for a in elements])


def _is_even(permutation: Permutation) -> bool:
    pairs = itertools.combinations(permutation, 2)
    return sum(first > second for first, second in pairs) % 2 == 0
