"""Edit distances on the device against the recursion that defines them."""

from functools import cache

import numpy as np

from jaxformer.ops.edit_distance import edit_distances, spoken

BLANK = 3


def defined(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    @cache
    def distance(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        replaced = distance(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, replaced)

    return distance(len(a), len(b))


def test_repetitions_are_merged_and_blanks_dropped():
    path = np.array([[0, 0, BLANK, 0, 1, 1, BLANK, 2], [BLANK, 1, 1, 2, 1, 1, 0, 0]])
    real = np.arange(8) < np.array([[8], [5]])
    counts = spoken(path, real, BLANK)
    assert path[0][counts[0]].tolist() == [0, 0, 1, 2]
    assert path[1][counts[1]].tolist() == [1, 2, 1]


def test_distances_are_the_fewest_edits():
    random = np.random.default_rng(0)
    path, labels = random.integers(0, 3, (40, 7)), random.integers(0, 3, (40, 5))
    counts, lengths = random.random((40, 7)) < 0.7, random.integers(0, 6, 40)
    mask = np.arange(5) < lengths[:, None]
    found = edit_distances(path, counts, labels, mask)
    expected = [
        defined(tuple(said[there]), tuple(row[:length]))
        for said, there, row, length in zip(path, counts, labels, lengths, strict=True)
    ]
    assert found.tolist() == expected
    assert max(expected) > 3
