"""Convolutions over the waveform against their definition in float64."""

import jax
import numpy as np
import pytest
from scipy.special import erf

from jaxformer.model.accounting import count_parameters, flops_per_token
from jaxformer.model.language_model import LanguageModel
from tests.model.test_frames import D_MODEL, VOCAB, built, embedded, logits_of

CHANNELS, SAMPLES = 2, 320
WIDTHS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def raw(norm: str, **options: object) -> tuple[LanguageModel, dict]:
    return built({"inputs": {"kind": "raw", "channels": CHANNELS, "norm": norm}} | options)


def sound(places: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(2).normal(size=(2, places * SAMPLES)) + 0.3


def normalised(x: np.ndarray, axis: int, weights: dict | None = None, eps: float = 1e-5):
    y = (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + eps)
    return y if weights is None else y * weights["scale"] + weights["bias"]


def defined(params: dict, waveform: np.ndarray, norm: str) -> np.ndarray:
    """[samples] → [places, d_model], one frame and one tap at a time."""
    x = np.pad(normalised(waveform[:, None], axis=0, eps=1e-7), [(0, 80), (0, 0)])
    for layer, (width, stride) in enumerate(zip(WIDTHS, STRIDES, strict=True)):
        weights = params[f"convolutions_{layer}"]
        made = [
            sum(x[start + tap] @ weights["kernel"][tap] for tap in range(width))
            for start in range(0, len(x) - width + 1, stride)
        ]
        x = np.array(made) + weights.get("bias", 0)
        if norm == "layer":
            x = normalised(x, 1, params[f"norms_{layer}"])
        elif layer == 0:
            x = normalised(x, 0, params["norm"])
        x = x * (1 + erf(x / np.sqrt(2))) / 2
    x = normalised(x, 1, params["projection_norm"])
    return x @ params["projection"]["kernel"] + params["projection"]["bias"]


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_seven_convolutions_see_the_normalised_waveform(norm):
    model, params = raw(norm)
    waveform = sound(2)
    for found, row in zip(embedded(model, params, waveform), waveform, strict=True):
        np.testing.assert_allclose(found, defined(params, row, norm), rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_padding_leaves_no_trace(norm):
    model, params = raw(norm)
    waveform = sound(4)
    alone = waveform[:, : 2 * SAMPLES]
    positions = np.broadcast_to(np.arange(4), (2, 4))
    rows = (waveform, positions, (positions < 2).astype(np.int32))
    found, expected = (logits_of(model, params, *each) for each in (rows, (alone,)))
    np.testing.assert_allclose(found[:, :2], expected, rtol=0, atol=1e-11)
    np.testing.assert_array_equal(embedded(model, params, *rows)[:, 2:], 0)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_packed_recordings_equal_each_recording_alone(norm):
    model, params = raw(norm)
    waveform, segments = sound(4), np.array([[1, 0, 2, 2]] * 2, np.int32)
    positions = np.array([[0, 0, 0, 1]] * 2)
    found = logits_of(model, params, waveform, positions, segments)
    for part in (slice(0, 1), slice(2, 4)):
        alone = waveform[:, part.start * SAMPLES : part.stop * SAMPLES]
        expected = logits_of(model, params, alone)
        np.testing.assert_allclose(found[:, part], expected, rtol=0, atol=1e-11)


def test_a_place_costs_what_its_convolutions_cost():
    model, _ = raw("group", ffn=None)
    frames, inputs = 320 // np.cumprod(STRIDES), [1, *[CHANNELS] * 6]
    convolutions = sum(2 * np.array(WIDTHS) * frames * inputs * CHANNELS)
    attention = 4 * 2 * D_MODEL**2 + 4 * D_MODEL * 10  # per place, of ten: projections and pairs
    ends = 2 * CHANNELS * D_MODEL + 2 * D_MODEL * VOCAB
    assert flops_per_token(model, 10) == pytest.approx(convolutions + attention + ends, rel=1e-12)
    kernels = sum(np.array(WIDTHS) * inputs * CHANNELS)
    norms = 2 * 2 * CHANNELS + 2 * D_MODEL
    parameters = kernels + norms + (CHANNELS + 1) * D_MODEL + D_MODEL * VOCAB
    assert count_parameters(model) == parameters + 4 * D_MODEL**2
