"""Every test under contract runs in float64, for every case."""

import jax
import pytest
from contracts.cases import CASES
from contracts.definition import Case

from jaxformer.model.mixers import mamba, s4d
from jaxformer.ops import causal_attention
from jaxformer.ops.decayed_outer_product import decayed_outer_product
from jaxformer.ops.delta_rule import delta_rule, diagonal_plus_low_rank
from jaxformer.ops.diagonal import diagonal_recurrence


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine takes three tokens at once, and attention three queries."""
    for engine in (decayed_outer_product, delta_rule, diagonal_plus_low_rank, diagonal_recurrence):
        monkeypatch.setitem(engine.__kwdefaults__, "chunk", 3)
    for module in (mamba, s4d):
        monkeypatch.setattr(module, "CHUNK", 3)
    monkeypatch.setattr(causal_attention, "SMALLEST_BLOCK", 3)
