"""Log-mel spectrograms: how loud every band of pitch is, frame by frame.

Mel scales: Slaney, 1998, Auditory Toolbox; O'Shaughnessy, 1987 (`htk`). What Whisper reads: Radford
et al., 2022, arXiv:2212.04356.
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

MelScale = Literal["slaney", "htk"]
QUIETEST = 1e-10  # of a band's power, whose logarithm would be −∞ in silence


def spectrogram(waveform: jax.Array, window: int, hop: int) -> jax.Array:
    """|DFT(hann ⊙ frame_t)|²: [batch, samples] → [batch, samples / hop, window // 2 + 1].

    Frame t has `window` samples around sample t · hop. Before its beginning, a recording is
    mirrored at its first sample; behind its end it is 0, so that no frame depends on how many zeros
    fill up the row.
    """
    batch, samples = waveform.shape
    count, blocks_of_frame = samples // hop, math.ceil(window / hop)
    before = jnp.flip(waveform[:, 1 : window // 2 + 1], axis=1)
    behind = jnp.zeros((batch, (count + blocks_of_frame) * hop), waveform.dtype)
    padded = jnp.concatenate([before, waveform, behind], axis=1)
    blocks = padded[:, : (count + blocks_of_frame) * hop].reshape(batch, -1, hop)
    # Shifted copies: XLA would gather overlapping frames one sample at a time on a TPU.
    frames = jnp.concatenate(
        [blocks[:, shift : shift + count] for shift in range(blocks_of_frame)], axis=2
    )[..., :window]
    hann = np.sin(np.pi * np.arange(window) / window) ** 2
    spectrum = jnp.fft.rfft(frames * jnp.asarray(hann, waveform.dtype))
    return jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2


def log_mels(
    waveform: jax.Array, *, sample_rate: int, window: int, hop: int, mels: int, scale: MelScale
) -> jax.Array:
    """log₁₀ of the power in every mel band: [batch, samples] → [batch, samples / hop, mels].

    Args:
        waveform: floating-point numbers from −1 to 1.
        sample_rate: in Hz.
        window, hop: in samples.
        scale: see `mel_filters`.
    """
    bands = jnp.asarray(mel_filters(sample_rate, window, mels, scale), waveform.dtype)
    power = jnp.matmul(spectrogram(waveform, window, hop), bands, precision="highest")
    return jnp.log10(jnp.maximum(power, QUIETEST))


def mel_filters(sample_rate: int, window: int, mels: int, scale: MelScale) -> np.ndarray:
    """Triangles [window // 2 + 1, mels] over frequency, whose corners lie evenly on the mel scale
    from 0 to half the sample rate.

    `slaney` triangles have equal areas, as librosa's by default and Whisper's; `htk` ones are 1 at
    their peaks, as torchaudio's by default.
    """
    frequencies = np.linspace(0, sample_rate / 2, window // 2 + 1)[:, None]
    highest = _mels_of(sample_rate / 2, scale)
    corners = _frequencies_of(np.linspace(0, highest, mels + 2), scale)
    left, peak, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (frequencies - left) / (peak - left), (right - frequencies) / (right - peak)
    triangles = np.maximum(0, np.minimum(rising, falling))
    return triangles * 2 / (right - left) if scale == "slaney" else triangles


# Slaney's scale is linear up to 1,000 Hz, or 15 mels, and has 27 mels from there to 6,400 Hz.
_STEP = math.log(6.4) / 27


def _mels_of(frequency: float, scale: MelScale) -> float:
    if scale == "htk":
        return 2595 * math.log10(1 + frequency / 700)
    if frequency < 1000:
        return frequency * 3 / 200
    return 15 + math.log(frequency / 1000) / _STEP


def _frequencies_of(mels: np.ndarray, scale: MelScale) -> np.ndarray:
    if scale == "htk":
        return 700 * (10 ** (mels / 2595) - 1)
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(_STEP * (mels - 15)))


def whisper_range(logs: jax.Array, recordings: jax.Array) -> jax.Array:
    """(max(x, max x − 8) + 4) / 4, with the largest value of a recording: log₁₀ powers
    [batch, frames, mels], and the number of each place's recording [batch, places]."""
    x = in_places(logs, recordings)
    largest = over_recordings(jax.ops.segment_max, jnp.max(x, axis=(2, 3)), recordings)
    return ((jnp.maximum(x, largest[:, :, None, None] - 8) + 4) / 4).reshape(logs.shape)


def standardised(
    x: jax.Array, recordings: jax.Array, eps: float, counted: jax.Array | None = None
) -> jax.Array:
    """(x − mean) / √(variance + ε), of every feature over the frames of its recording:
    [batch, frames, features], and the number of each place's recording [batch, places]. Not all
    frames of a place need be counted [batch, places, frames of a place]."""
    places = in_places(x, recordings)
    shares = jnp.ones((), bool) if counted is None else counted
    shares = jnp.broadcast_to(shares, places.shape[:3]).astype(x.dtype)[..., None]

    def total(x: jax.Array) -> jax.Array:
        return over_recordings(jax.ops.segment_sum, jnp.sum(shares * x, axis=2), recordings)

    count = total(jnp.ones_like(shares))

    def mean(x: jax.Array) -> jax.Array:
        return (total(x) / count)[:, :, None]

    centred = places - mean(places)
    return (centred * jax.lax.rsqrt(mean(centred**2) + eps)).reshape(x.shape)


def in_places(x: jax.Array, recordings: jax.Array) -> jax.Array:
    """[batch, frames, features] → [batch, places, frames of a place, features]"""
    return x.reshape(*recordings.shape, -1, x.shape[-1])


def over_recordings(
    reduce: Callable[..., jax.Array], values: jax.Array, recordings: jax.Array
) -> jax.Array:
    """What `reduce`, such as `jax.ops.segment_sum`, makes of all places of each one's recording:
    values [batch, places, ...] → the same shape."""
    count = recordings.shape[1] + 1  # numbers go up to that of the places

    def of_row(values: jax.Array, recordings: jax.Array) -> jax.Array:
        return reduce(values, recordings, num_segments=count)[recordings]

    return jax.vmap(of_row)(values, recordings)


def with_beginnings(waveform: jax.Array, recordings: jax.Array, window: int) -> jax.Array:
    """A waveform [batch, samples] with what frames see before recordings that begin behind others:
    in the place before each one, which is that of no recording, it is mirrored at its first sample,
    as `spectrogram` does at the beginning of a row."""
    places = waveform.reshape(*recordings.shape, -1)
    first = places.shape[2] - window // 2
    mirrored = jnp.flip(places[:, 1:, 1 : window // 2 + 1], axis=2)
    begins = (recordings[:, :-1] == 0) & (recordings[:, 1:] != 0)
    before = jnp.where(begins[..., None], mirrored, places[:, :-1, first:])
    return places.at[:, :-1, first:].set(before).reshape(waveform.shape)
