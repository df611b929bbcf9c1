"""Spectrograms against their definition, one frame and one frequency at a time, in float64."""

import jax
import numpy as np
import pytest

from jaxformer.ops.spectrogram import (
    log_mels,
    mel_filters,
    spectrogram,
    standardised,
    whisper_range,
)

WINDOW, HOP, RATE = 20, 8, 400


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def sound(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (2, samples))


def defined(waveform: np.ndarray, window: int = WINDOW, hop: int = HOP) -> np.ndarray:
    """One recording's powers [frames, frequencies], by the sum that defines them."""
    half = window // 2

    def at(place: int) -> float:
        place = abs(place)
        return waveform[place] if place < len(waveform) else 0.0

    hann = [0.5 - 0.5 * np.cos(2 * np.pi * n / window) for n in range(window)]
    return np.array(
        [
            [
                abs(
                    sum(
                        hann[n]
                        * at(frame * hop - half + n)
                        * np.exp(-2j * np.pi * frequency * n / window)
                        for n in range(window)
                    )
                )
                ** 2
                for frequency in range(half + 1)
            ]
            for frame in range(len(waveform) // hop)
        ]
    )


@pytest.mark.parametrize(("window", "hop"), [(20, 8), (16, 16), (9, 4), (6, 10)])
def test_a_spectrogram_is_the_power_of_windowed_frames(window, hop):
    waveform = sound(6 * hop)
    found = spectrogram(waveform, window, hop)
    expected = [defined(row, window, hop) for row in waveform]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_zeros_behind_the_end_change_no_frame():
    waveform = sound(5 * HOP)
    filled = np.pad(waveform, [(0, 0), (0, 3 * HOP)])
    found, longer = (spectrogram(each, WINDOW, HOP) for each in (waveform, filled))
    np.testing.assert_allclose(longer[:, :5], found, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(longer[:, 7:], 0)


@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_mel_bands_are_triangles_between_evenly_spaced_pitches(scale):
    # Slaney's formulas and HTK's, of frequencies on both sides of 1,000 Hz.
    rate, window, mels = 8000, 512, 6

    def pitch(f: float) -> float:
        if scale == "htk":
            return 1127.01048 * np.log(1 + f / 700)
        return f / (200 / 3) if f < 1000 else 15 + 27 * np.log(f / 1000) / np.log(6.4)

    pitches = np.array([pitch(f) for f in np.linspace(0, rate / 2, window // 2 + 1)])
    filters = mel_filters(rate, window, mels, scale)
    step, nearest = pitch(rate / 2) / (mels + 1), np.diff(pitches).max()
    for band in range(mels):
        inside = (pitches > band * step) & (pitches < (band + 2) * step)
        np.testing.assert_array_equal(filters[:, band] > 0, inside)
        assert pitches[filters[:, band].argmax()] == pytest.approx((band + 1) * step, abs=nearest)
    spacing = rate / window
    if scale == "slaney":
        np.testing.assert_allclose(filters.sum(axis=0) * spacing, 1, rtol=0.02)
    else:
        np.testing.assert_allclose(filters.max(axis=0), 1, atol=0.1)


def test_log_mels_are_logarithms_of_bands_and_silence_is_finite():
    waveform = sound(4 * HOP)
    waveform[1] = 0
    found = log_mels(waveform, sample_rate=RATE, window=WINDOW, hop=HOP, mels=3, scale="htk")
    powers = defined(waveform[0]) @ mel_filters(RATE, WINDOW, 3, "htk")
    np.testing.assert_allclose(found[0], np.log10(powers), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found[1], -10)


def test_ranges_are_those_of_each_recording():
    logs = np.random.default_rng(1).uniform(-12, 3, (2, 10, 3))
    recordings = np.array([[1, 1, 0, 2, 2], [1, 1, 1, 0, 0]], np.int32)  # of places of two frames
    ranges, standard = whisper_range(logs, recordings), standardised(logs, recordings, 1e-5)
    for row, part in ((0, slice(0, 4)), (0, slice(6, 10)), (1, slice(0, 6))):
        x = logs[row, part]
        expected = (np.maximum(x, x.max() - 8) + 4) / 4
        np.testing.assert_allclose(ranges[row, part], expected, rtol=0, atol=1e-14)
        expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        np.testing.assert_allclose(standard[row, part], expected, rtol=0, atol=1e-13)
