"""Random numbers that are a function of keys alone, for many rows at once.

They are those of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", 2014). A generator of numpy takes 20 µs to seed, which is too long for every row, and
its numbers may differ between versions.
"""

import numpy as np

GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd


def mixed(words: np.ndarray) -> np.ndarray:
    """A bijection of uint64 in which every bit depends on every bit."""
    words = np.asarray(words, np.uint64)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def streams(keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The seed of each row's own numbers, uint64 [rows]."""
    return mixed(np.asarray(keys, np.uint64) ^ mixed(np.asarray(rows).astype(np.uint64) + GAMMA))


def numbers(seeds: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The uint64 at these places of the streams; both are broadcast against each other."""
    return mixed(np.asarray(seeds, np.uint64) + (places.astype(np.uint64) + np.uint64(1)) * GAMMA)


def uniforms(seeds: np.ndarray, first: int, count: int) -> np.ndarray:
    """The numbers from place `first` on, in [0, 1), float64 [rows, count]."""
    drawn = numbers(seeds[:, None], np.arange(first, first + count))
    return (drawn >> np.uint64(11)) * 2.0**-53
