"""Every test under contract runs in float64: for a `case` of a causal model, an `encoder`, or
`any_case` of both."""

import jax
import pytest
from contracts.cases import CASES, ENCODERS
from contracts.definition import Case

from jaxformer.model.mixers import s4d
from jaxformer.ops import row_attention
from jaxformer.ops.decayed_outer_product import decayed_outer_product, past_outer_product
from jaxformer.ops.delta_rule import delta_rule, diagonal_plus_low_rank, two_key_delta_rule
from jaxformer.ops.diagonal import diagonal_recurrence
from jaxformer.ops.selective_scan import selective_scan


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(params=ENCODERS, scope="module")
def encoder(request: pytest.FixtureRequest) -> Case:
    return ENCODERS[request.param]


@pytest.fixture(params=CASES | ENCODERS, scope="module")
def any_case(request: pytest.FixtureRequest) -> Case:
    return (CASES | ENCODERS)[request.param]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine takes three tokens at once, and attention three queries."""
    outer_products = (decayed_outer_product, past_outer_product)
    delta_rules = (delta_rule, two_key_delta_rule, diagonal_plus_low_rank)
    for engine in (*outer_products, *delta_rules, diagonal_recurrence, selective_scan):
        monkeypatch.setitem(engine.__kwdefaults__, "chunk", 3)
    monkeypatch.setattr(s4d, "CHUNK", 3)
    monkeypatch.setattr(row_attention, "SMALLEST_BLOCK", 3)
