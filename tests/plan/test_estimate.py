from typing import NamedTuple

import numpy as np
import pytest

from jaxformer.plan.collectives import Collective
from jaxformer.plan.cost import Cost
from jaxformer.plan.estimate import estimate, kernel_flops, link_seconds, waits
from jaxformer.plan.hlo import Shape
from jaxformer.plan.topology import parse_slice
from jaxformer.plan.work import Kernel, Work


class Device(NamedTuple):
    coords: tuple[int, ...]
    slice_index: int


def devices(name: str, slices: int = 1) -> list[Device]:
    shape = parse_slice(name).shape
    return [Device(at, index) for index in range(slices) for at in np.ndindex(*shape)]


def seconds(kind: str, gigabytes: float, name: str, group: list[Device]) -> float:
    collective = Collective(kind, gigabytes * 1e9, tuple(range(len(group))))
    return link_seconds(collective, parse_slice(name), group)


def test_a_group_around_three_rings_receives_on_six_links():
    cube = devices("v5p-128")
    assert seconds("all-gather", 64, "v5p-128", cube) == pytest.approx(63 / 600)
    assert seconds("reduce-scatter", 64, "v5p-128", cube) == pytest.approx(63 / 600)
    assert seconds("all-reduce", 64, "v5p-128", cube) == pytest.approx(2 * 63 / 600)


def test_a_group_along_a_part_of_a_ring_is_a_line():
    cube = devices("v5p-128")
    ring = [device for device in cube if device.coords[:2] == (0, 0)]
    assert seconds("all-gather", 4, "v5p-128", ring) == pytest.approx(3 / 200)
    assert seconds("all-gather", 4, "v5p-128", ring[:2]) == pytest.approx(2 / 100)
    assert seconds("collective-permute", 4, "v5p-128", ring) == pytest.approx(4 / 100)
    assert seconds("all-to-all", 4, "v5p-128", ring) == pytest.approx(4 * (4 / 4) / 200)


def test_between_slices_the_part_of_a_chip_goes_over_the_slow_network():
    both = devices("v5p-128", slices=2)
    across = 2 * (64 / 64) * (1 / 2) / 6.25
    within = 2 * 63 / 600
    assert seconds("all-reduce", 64, "v5p-128", both) == pytest.approx(across + within)


def test_the_longest_of_compute_network_and_memory_bounds_the_step():
    where, cube = parse_slice("v5p-128"), devices("v5p-128")
    everyone = tuple(range(64))
    cost = Cost(flops=1e12, cycles=where.chip.clock, memory=2765e9 / 2)
    gather, tenth = Collective("all-gather", 64e9, everyone), Work(0.1 * where.chip.clock)
    cost.flights[gather, 0] = 2
    cost.flights[gather, tenth, 0] = 1  # beside 0.1 s of work it is waited for 5 ms
    cost.flights[gather, tenth, tenth, 0] = 2  # and beside 0.2 s not at all
    of_step = estimate(cost, where, cube)  # type: ignore[arg-type]
    assert (of_step.compute, of_step.memory) == (1.0, 0.5)
    assert of_step.waiting == pytest.approx(2 * 0.105 + 0.005)
    assert of_step.network == pytest.approx(5 * 0.105)
    assert of_step.step == pytest.approx(1.215)
    assert of_step.bound == "compute"
    cost.flights[gather, tenth, tenth, 0] = 20
    assert estimate(cost, where, cube).bound == "network"  # type: ignore[arg-type]
    cost.memory = 2765e9 * 9
    assert estimate(cost, where, cube).bound == "memory"  # type: ignore[arg-type]


def test_links_serve_collectives_one_after_the_other():
    where = parse_slice("v5p-128")
    first, second = Collective("all-gather", 3.0, (0, 1)), Collective("reduce-scatter", 5.0, (0, 1))
    two = Work(2 * where.chip.clock)
    waited = waits((first, two, second, two, 0, two, 1, two), lambda one: one.bytes, where.chip)
    # The first takes until 3, the second from then until 8; at 4 and at 6 they are waited for.
    assert list(waited) == [("all-gather", 0.0), ("reduce-scatter", pytest.approx(2.0))]


def splash(name: str, grid: tuple[int, int], results: int, *blocks: int) -> Kernel:
    visits, queries = Shape("s8", (1, *grid), False), Shape("bf16", (2, 32, 8192, 128), False)
    operands = (visits, visits, queries)
    return Kernel(f"splash_mha_{name}", operands, (queries,) * results, None, 0, blocks)


def test_attention_in_blocks_counts_those_that_are_visited():
    product = 2 * 2 * 32 * 8192**2 * 128
    square = (1024, 1024)
    assert kernel_flops(splash("fwd_residuals", (8, 8), 2, *square)) == 2 * product * 36 / 64
    assert kernel_flops(splash("dkv", (8, 8), 3, *square)) == 5 * product * 36 / 64
    assert kernel_flops(splash("dkv", (8, 8), 2, *square)) == 4 * product * 36 / 64
    assert kernel_flops(splash("dq", (8, 8), 1, *square)) == 3 * product * 36 / 64
    # Two blocks of queries a block of keys: 1 + 1 + 2 + 2 + 3 + 3 + 4 + 4 of 32.
    assert kernel_flops(splash("dkv", (8, 4), 3, 1024, 2048)) == 5 * product * 20 / 32
    window = 1 + 2 * 7  # blocks of the queries' own place and of the one before
    assert kernel_flops(splash("fwd", (8, 2), 2, *square)) == 2 * product * window / 64
    assert kernel_flops(splash("dkv", (2, 8), 3, *square)) == 5 * product * window / 64
