"""The FLOPs of a program's matrix products, counted without compiling it."""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def product_flops(program: Jaxpr) -> int:
    """FLOPs of all `dot_general`, a multiply-add counting two. A scan's body counts for every turn,
    and of the branches of a `cond` the cheapest counts: products in halves are for decays beyond
    float32."""
    total = 0
    for equation in program.eqns:
        within = [product_flops(part) for part in _programs(equation.params)]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2 * math.prod(result) * math.prod(left[axis] for axis in contracted)
        elif equation.primitive.name == "cond":
            total += min(within)
        else:
            total += equation.params.get("length", 1) * sum(within)
    return total


def _programs(parameters: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in parameters.values():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part
