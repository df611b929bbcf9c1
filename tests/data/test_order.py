from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from jaxformer.data.order import ShuffledRows


def epochs(rows: int, seed: int, source: int = 0, count: int = 3) -> list[tuple[int, ...]]:
    order = ShuffledRows(50, rows, seed, source)
    return [tuple(order[epoch * rows + row].row for row in range(rows)) for epoch in range(count)]


@pytest.mark.parametrize("rows", [*range(1, 70), 255, 256, 257, 1025, 65537])
def test_every_epoch_has_every_row_once(rows: int) -> None:
    for epoch in epochs(rows, seed=1, count=2):
        assert sorted(epoch) == list(range(50, 50 + rows))


def test_epochs_seeds_and_sources_have_orders_of_their_own() -> None:
    assert epochs(100, seed=3) == epochs(100, seed=3)
    orders = [
        epoch for seed in range(3) for source in range(2) for epoch in epochs(100, seed, source)
    ]
    assert len({*orders, tuple(range(50, 150))}) == 19


def test_the_order_of_a_release_is_the_order_of_the_next() -> None:
    """A resumed run must see the rows that it would have seen: these figures may not change."""
    order = ShuffledRows(0, 10, 0, 0)
    assert [order[row].row for row in range(10)] == [7, 9, 8, 3, 4, 2, 0, 6, 1, 5]
    assert [order[row].row for row in range(10, 20)] == [6, 2, 0, 3, 4, 7, 1, 9, 8, 5]


def test_every_permutation_is_as_likely() -> None:
    """χ² of 24 permutations, 23 degrees of freedom: 49.7 is exceeded once in a thousand."""
    draws = 2400
    seen = Counter(epochs(4, seed, count=1)[0] for seed in range(draws))
    expected = draws / 24
    chi_squared = sum(
        (seen[permutation] - expected) ** 2 / expected
        for permutation in permutations(range(50, 54))
    )
    assert chi_squared < 49.7


def test_shuffled_places_do_not_follow_the_rows() -> None:
    rows = 1000
    orders = np.asarray([epochs(rows, seed, count=1)[0] for seed in range(40)]) - 50
    places = np.tile(np.arange(rows), 40)
    assert abs(np.corrcoef(places, orders.ravel())[0, 1]) < 4 / np.sqrt(places.size)
    followed = (np.diff(orders, axis=1) == 1).sum(axis=1)
    assert followed.mean() == pytest.approx(1.0, abs=0.6)


@pytest.mark.parametrize("rows", [2**31 + 11, 2**32 + 1, 2**40])
def test_rows_beyond_32_bits_are_shuffled_within_their_range(rows: int) -> None:
    order = ShuffledRows(7, rows, 1, 0)
    drawn = [order[place].row for place in range(1000)]
    assert len(set(drawn)) == 1000
    assert all(7 <= row < 7 + rows for row in drawn)
    assert np.mean(drawn) == pytest.approx(rows / 2, rel=0.1)
    assert 7 <= order[10**17].row < 7 + rows


def test_the_rows_of_an_epoch_share_a_key_and_no_other_epoch_has_it() -> None:
    def keys(seed: int, source: int, epoch: int) -> set[int]:
        order = ShuffledRows(0, 9, seed, source)
        return {order[epoch * 9 + place].key for place in range(9)}

    cases = [(seed, source, epoch) for seed in range(3) for source in range(3) for epoch in (0, 7)]
    found = [keys(*case) for case in cases]
    assert all(len(each) == 1 for each in found)
    assert len(set().union(*found)) == len(cases)
    assert ShuffledRows(0, 9, 2, 1, start=13)[5] == ShuffledRows(0, 9, 2, 1)[18]
