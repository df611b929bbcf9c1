"""Keeps JAX_ENABLE_X64 from changing what Optax computes."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def without_x64(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`function` with 32-bit default types, whatever JAX_ENABLE_X64 says: Optax computes schedules,
    bias corrections and Muon's coefficients in JAX's default float type."""

    @wraps(function)
    def narrow(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with jax.enable_x64(False):
            return function(*args, **kwargs)

    return narrow
