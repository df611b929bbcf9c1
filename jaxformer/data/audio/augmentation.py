"""What training does to recordings at random: a function of each row's own numbers alone.

The parts of `data.audio.augment` take their numbers from fixed places of a row's stream, so that
one that is switched on leaves the numbers of the others as they are.
"""

import math

import numpy as np

from jaxformer.config.audio import SoundAugmentConfig
from jaxformer.data.audio.decoding import in_int16, resampled
from jaxformer.data.draws import uniforms

SPEED, NOISE, GAIN, SAMPLES = 0, 1, 2, 100
STEPS = 20  # of speed, per factor of 1


def augmented(
    samples: np.ndarray, seed: np.ndarray, config: SoundAugmentConfig, longest: int
) -> np.ndarray:
    """A recording as training hears it, int16 [samples], at most `longest`.

    Args:
        seed: of its numbers, uint64 [1], see `draws.streams`.
    """
    of_speed, of_noise, of_gain = uniforms(seed, SPEED, 3)[0]
    x = samples.astype(np.float32) / 2**15
    if config.speed is not None:
        x = resampled(x, _speed(of_speed, config.speed, len(x) / longest), STEPS)
    if config.noise is not None:
        # Uniform numbers have the variance 1/12.
        loudness = np.sqrt(np.mean(x**2) * 12) * _factor(-_between(of_noise, config.noise))
        x = x + loudness * (uniforms(seed, SAMPLES, len(x))[0] - 0.5)
    if config.gain is not None:
        x = x * _factor(_between(of_gain, config.gain))
    return in_int16(x)


def slowest(config: SoundAugmentConfig) -> float:
    """The lowest speed at which training may play a recording; at most 1."""
    return min(round(STEPS * (config.speed or (1.0,))[0]) / STEPS, 1.0)


def _speed(draw: float, speeds: tuple[float, ...], share: float) -> int:
    """The speed in steps: uniform between the two, and no slower than a recording allows that has
    this share of the longest one's samples."""
    low, high = (round(STEPS * speed) for speed in speeds)
    return max(low + int(draw * (high - low + 1)), math.ceil(STEPS * share))


def _between(draw: float, limits: tuple[float, ...]) -> float:
    return limits[0] + (limits[1] - limits[0]) * draw


def _factor(decibels: float) -> float:
    return 10.0 ** (decibels / 20)
