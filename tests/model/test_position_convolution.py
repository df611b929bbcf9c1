"""Positions by the places around a place, against their definition in float64."""

import jax
import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import erf

from jaxformer.model.accounting import flops_per_token
from jaxformer.model.config import ModelConfig
from tests.model.test_frames import D_MODEL, MODEL, embedded, logits_of, model_of, rows_of, sound

WIDTH, GROUPS = 4, 2  # an even width sees one place more before than behind
POSITIONS = {"kind": "convolution", "width": WIDTH, "groups": GROUPS}
PLACES = 5  # more than the convolution sees


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def normed():
    with jax.enable_x64(True):
        norm = {"kind": "layer", "placement": "post", "bias": True}
        return model_of({"embedding_norm": True}, positions=POSITIONS, norm=norm)


def defined(params: dict, x: np.ndarray) -> np.ndarray:
    """[places, d_model], one place, one tap and one group at a time."""
    weights, size, y = params["position_convolution"], D_MODEL // GROUPS, []
    for place in range(len(x)):
        total = np.array(weights["bias"])
        for tap in range(WIDTH):
            at = place + tap - WIDTH // 2
            for group in range(GROUPS if 0 <= at < len(x) else 0):
                of = slice(group * size, (group + 1) * size)
                total[of] += x[at, of] @ weights["kernel"][tap][:, of]
        y.append(total * (1 + erf(total / np.sqrt(2))) / 2)
    x = x + np.array(y)
    centred = x - x.mean(1, keepdims=True)
    norm, scale = params["embedding_norm"], np.sqrt((centred**2).mean(1, keepdims=True) + 1e-6)
    return centred / scale * norm["scale"] + norm["bias"]


def test_a_place_is_added_to_what_lies_around_it_and_normalised(normed):
    model, params = normed
    without, _ = model_of(positions={"kind": "none"})
    rest = {name: params[name] for name in params if "convolution_" in name or "stack" in name}
    waveform = sound(PLACES)
    heard = embedded(without, rest, waveform)
    for found, x in zip(embedded(model, params, waveform), heard, strict=True):
        np.testing.assert_allclose(found, defined(params, x), rtol=0, atol=1e-12)


def test_padding_leaves_no_trace_in_positions(normed):
    model, params = normed
    waveform = sound(PLACES)
    alone = waveform[:, : 3 * waveform.shape[1] // PLACES]
    rows = rows_of(waveform, 3, 3)
    found, expected = (logits_of(model, params, *each) for each in (rows, (alone,)))
    np.testing.assert_allclose(found[:, :3], expected, rtol=0, atol=1e-11)


def test_a_convolution_for_positions_costs_its_products(normed):
    model, _ = normed
    without, _ = model_of(positions={"kind": "none"})
    found = flops_per_token(model, 10) - flops_per_token(without, 10)
    assert found == 2 * WIDTH * D_MODEL * D_MODEL / GROUPS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": {"kind": "tokens"}}, "for the places of recordings, but inputs are tokens"),
        ({"positions": POSITIONS | {"groups": 3}}, "d_model 8 is not divisible by positions.gr"),
        ({"pattern": [{"positions": POSITIONS}]}, "added to the embeddings, below all layers"),
    ],
)
def test_positions_that_fit_nothing_are_refused(options, message):
    given = {**MODEL, "inputs": {"kind": "frames"}, "positions": POSITIONS, **options}
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate(given)
