"""Every test under contract runs in float64, for every case."""

import jax
import pytest
from contracts.cases import CASES
from contracts.definition import Case


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]
