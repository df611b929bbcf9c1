"""How long a step takes, from what its program computes, moves and sends: a scheduled roofline.

The figures are the compiler's and the data sheets'. They leave out latencies and the launch of
each operation, so they are lower bounds, which rank variants well; a step on hardware takes a few
percent more.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax

from jaxformer.parallel.chips import Chip
from jaxformer.plan.collectives import Collective, Flight
from jaxformer.plan.cost import Cost
from jaxformer.plan.topology import Slice
from jaxformer.plan.work import Kernel, Work


@dataclass(frozen=True)
class Traffic:
    """All collectives of one kind in a step, on one chip."""

    kind: str
    count: int
    bytes: float  # received
    seconds: float  # on the links
    waited: float  # seconds of these with nothing computed meanwhile


@dataclass(frozen=True)
class Estimate:
    """Seconds of a step on one chip."""

    compute: float  # the compiler's cycles, kernels, and copies without cycles
    waiting: float  # for collectives, with nothing computed beside them
    network: float  # all collectives
    memory: float  # bytes from and to HBM at its full bandwidth
    kernel_flops: float
    traffic: tuple[Traffic, ...]

    @property
    def step(self) -> float:
        return max(self.compute + self.waiting, self.network, self.memory)

    @property
    def bound(self) -> str:
        """The resource that limits the step."""
        if self.step == self.memory:
            return "memory"
        return "compute" if self.compute >= self.network else "network"


def estimate(cost: Cost, where: Slice, devices: Sequence[jax.Device]) -> Estimate:
    """The times of a program whose partitions run on `devices`, in this order."""
    chip = where.chip

    def link(collective: Collective) -> float:
        return link_seconds(collective, where, [devices[part] for part in collective.group])

    waited: defaultdict[str, float] = defaultdict(float)
    for flight, times in cost.flights.items():
        for kind, seconds in waits(flight, link, chip):
            waited[kind] += times * seconds
    traffic, collectives = [], cost.collectives
    for kind in sorted({collective.kind for collective in collectives}):
        of_kind = [(c, times) for c, times in collectives.items() if c.kind == kind]
        traffic.append(
            Traffic(
                kind,
                sum(times for _, times in of_kind),
                sum(times * c.traffic for c, times in of_kind),
                sum(times * link(c) for c, times in of_kind),
                waited[kind],
            )
        )
    return Estimate(
        compute=work_seconds(cost.work, chip),
        waiting=sum(part.waited for part in traffic),
        network=sum(part.seconds for part in traffic),
        memory=cost.memory / chip.memory_bandwidth,
        kernel_flops=sum(times * kernel_flops(kernel) for kernel, times in cost.kernels.items()),
        traffic=tuple(sorted(traffic, key=lambda part: -part.seconds)),
    )


def waits(
    flight: Flight, link: Callable[[Collective], float], chip: Chip
) -> Iterator[tuple[str, float]]:
    """How long each collective of a flight is waited for, by kind. Links serve one at a time."""
    now, free = 0.0, 0.0
    sent: list[tuple[str, float]] = []  # kind, and when it has arrived
    for event in flight:
        match event:
            case Collective():
                free = max(now, free) + link(event)
                sent.append((event.kind, free))
            case Work():
                now += work_seconds(event, chip)
            case int():
                kind, arrived = sent[event]
                yield kind, max(0.0, arrived - now)
                now = max(now, arrived)


def work_seconds(work: Work, chip: Chip) -> float:
    """Seconds: by the compiler's cycles, the kernels' FLOPs or bytes, and memory for the rest."""
    kernels = sum(
        times * max(kernel_flops(kernel) / chip.peak_flops, kernel.bytes / chip.memory_bandwidth)
        for kernel, times in work.kernels
    )
    return work.cycles / chip.clock + kernels + work.unestimated / chip.memory_bandwidth


def kernel_flops(kernel: Kernel) -> float:
    """FLOPs of a Pallas call: as it states them, or from the operands of splash attention.

    Its first operand is the grid [heads or 1, query blocks, key blocks] of what it visits, shorter
    along one side where a window leaves few; q [..., heads, length, head_dim] is the first matrix.
    A block that is visible in part is computed whole. Every product of a block costs 2 FLOPs per
    multiply-add: forward has two products, the gradients of k and v four, that of q three, all
    gradients at once five.
    """
    if kernel.flops is not None:
        return kernel.flops
    found = re.search(r"splash_\w*?(fwd|dkv|dq)", kernel.name)
    if found is None or kernel.blocks is None:
        return 0.0
    products = {"fwd": 2, "dkv": 5 if len(kernel.results) > 2 else 4, "dq": 3}[found[1]]
    grid, queries = (
        kernel.operands[0].dims,
        next(shape.dims for shape in kernel.operands if shape.dtype in ("bf16", "f32")),
    )
    visited = _visited(grid[-2:], queries[-2], kernel.blocks)
    return products * 2.0 * math.prod(queries[:-2]) * queries[-1] * visited


def _visited(grid: Sequence[int], length: int, blocks: tuple[int, int]) -> int:
    """Pairs of a query and a key in the blocks that causality and a short grid leave."""
    block_q, block_kv = blocks
    rows, columns = grid
    if rows == length // block_q:
        seen = (min(-(-end // block_kv), columns) for end in range(block_q, length + 1, block_q))
    else:
        seeing = (length // block_q - begin // block_q for begin in range(0, length, block_kv))
        seen = (min(count, rows) for count in seeing)
    return sum(seen) * block_q * block_kv


def link_seconds(collective: Collective, where: Slice, devices: Sequence[jax.Device]) -> float:
    """The least time in which links carry a collective between `devices`.

    Between slices, chips exchange their part of what a slice holds over the slower network.
    """
    chip = where.chip
    slices = len({getattr(device, "slice_index", None) for device in devices})
    seconds = 0.0
    if slices > 1:
        rounds = 2 if collective.kind == "all-reduce" else 1
        share = collective.bytes * slices / len(devices)
        seconds = rounds * share * (slices - 1) / slices / chip.slice_bandwidth
        home = getattr(devices[0], "slice_index", None)
        devices = [d for d in devices if getattr(d, "slice_index", None) == home]
    if len(devices) == 1:
        return seconds
    sides = _sides(where, devices)
    if collective.kind == "collective-permute":
        return seconds + collective.bytes / chip.link_bandwidth
    ways = sum(2 if ring else 1 for _, ring in sides) * chip.link_bandwidth
    if "all-to-all" in collective.kind:
        # On average, a byte takes a quarter of a ring's links, and a third of a line's.
        hops = sum(size / (4 if ring else 3) for size, ring in sides)
        return seconds + collective.bytes * hops / ways
    rounds = 2 if collective.kind == "all-reduce" else 1
    return seconds + rounds * collective.bytes * (1 - 1 / len(devices)) / ways


def _sides(where: Slice, devices: Sequence[jax.Device]) -> list[tuple[int, bool]]:
    """Along which dimensions of the torus a group extends: how far, and whether around a ring."""
    sides = []
    places = zip(*(getattr(device, "coords", ()) for device in devices), strict=True)
    for size, wraps, along in zip(where.shape, where.wrap, places, strict=False):
        spanned = len(set(along))
        if spanned > 1:
            sides.append((spanned, wraps and spanned == size))
    return sides or [(2, False)]  # the two halves of one chip
