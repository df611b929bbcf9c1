"""Log-mel spectrograms as librosa's, and as what transformers gives to Whisper."""

import librosa
import numpy as np
import pytest
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from jaxformer.ops.spectrogram import log_mels, mel_filters, spectrogram, whisper_range

RATE, WINDOW, HOP = 16000, 400, 160


def speech(samples: int) -> np.ndarray:
    """A voice with a gliding pitch, noise, and a pause."""
    time = np.arange(samples) / RATE
    phase = 2 * np.pi * (120 * time + 30 * np.sin(3 * time))
    voice = sum(np.sin(k * phase) / k for k in range(1, 20))
    noise = np.random.default_rng(0).normal(size=samples)
    loud = np.where((time > 0.4) & (time < 0.5), 0.0, 0.2)
    return (loud * (voice + 0.1 * noise)).astype(np.float32)


@pytest.mark.parametrize("scale", ["slaney", "htk"])
@pytest.mark.parametrize(("rate", "window", "mels"), [(16000, 400, 80), (22050, 2048, 128)])
def test_mel_filters_are_those_of_librosa_and_transformers(scale, rate, window, mels):
    found = mel_filters(rate, window, mels, scale)
    norm, htk = ("slaney", False) if scale == "slaney" else (None, True)
    theirs = librosa.filters.mel(sr=rate, n_fft=window, n_mels=mels, htk=htk, norm=norm)
    np.testing.assert_allclose(found, theirs.T, rtol=0, atol=1e-6)
    bank = mel_filter_bank(window // 2 + 1, mels, 0, rate / 2, rate, norm=norm, mel_scale=scale)
    np.testing.assert_allclose(found, bank, rtol=0, atol=1e-12)


def test_spectrograms_are_those_of_librosa():
    waveform = speech(RATE)
    silence = np.pad(waveform, (0, WINDOW))  # which frames at the end see
    theirs = np.abs(librosa.stft(silence, n_fft=WINDOW, hop_length=HOP, pad_mode="reflect")) ** 2
    found = spectrogram(waveform[None], WINDOW, HOP)[0]
    np.testing.assert_allclose(found, theirs.T[: len(found)], rtol=0, atol=1e-6 * theirs.max())


@pytest.mark.parametrize("seconds", [1, 29.9])
def test_what_whisper_reads_is_what_transformers_gives_it(seconds):
    waveform = speech(int(seconds * RATE))
    theirs = WhisperFeatureExtractor()(waveform, sampling_rate=RATE, return_tensors="np")
    filled = np.pad(waveform, (0, 30 * RATE - len(waveform)))[None]
    logs = log_mels(filled, sample_rate=RATE, window=WINDOW, hop=HOP, mels=80, scale="slaney")
    found = whisper_range(logs, np.ones(logs.shape[:2], np.int32))
    np.testing.assert_allclose(found, theirs.input_features.swapaxes(1, 2), rtol=0, atol=1e-4)
