"""A mixer reads its own arrays, and nothing beside them."""

import jax
import numpy as np
from contracts.contract import run, setup
from contracts.definition import Case

from tests.guarded import guarded


def test_arrays_between_nan_give_what_they_give_elsewhere(case: Case) -> None:
    mixer, params, x = setup(case)
    between = run(mixer, jax.tree.map(guarded, params), guarded(x))
    np.testing.assert_array_equal(between, run(mixer, params, x))
