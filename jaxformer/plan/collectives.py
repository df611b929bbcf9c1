"""What devices send each other, and what they compute meanwhile."""

import math
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from jaxformer.plan.hlo import Computation, Instruction
from jaxformer.plan.work import Work

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclass(frozen=True)
class Collective:
    """Communication of one kind between the devices of `group`.

    `bytes` is the larger of its input and output on one device: the output of an all-gather, the
    input of a reduce-scatter, an all-reduce, an all-to-all or a permutation. Of a ragged all-to-all
    it is the smaller one: the other has spare room.
    """

    kind: str
    bytes: float
    group: tuple[int, ...]  # partitions; one of the groups that do the same at once

    @property
    def traffic(self) -> float:
        """Bytes that a device receives, if none is sent twice."""
        size = len(self.group)
        if self.kind == "collective-permute":
            return self.bytes
        return self.bytes * (size - 1) / size * (2 if self.kind == "all-reduce" else 1)


# In the order of the program: a collective begins, work is done, or a collective, given by its
# number in the flight, is waited for.
Event = Collective | Work | int
Flight = tuple[Event, ...]


class UnderWay:
    """Records the flights of a computation that runs `times` times, in the order of its text.

    A flight lasts from the start of a collective until none is under way.
    """

    def __init__(self, flights: Counter[Flight], times: int) -> None:
        self._flights = flights
        self._times = times
        self._events: list[Event] = []
        self._open: dict[str, list[int]] = {}  # numbers of collectives, by what ends them
        self._count = 0
        self._done = Work()  # up to the last of `_events`

    def begin(self, name: str, collectives: list[Collective], done: Work) -> None:
        """`done` is all work up to here."""
        if not collectives:
            return
        self._work(done)
        self._open[name] = list(range(self._count, self._count + len(collectives)))
        self._count += len(collectives)
        self._events += collectives

    def hand_over(self, name: str, other: str) -> None:
        """What `name` began will be ended under the name `other`."""
        if name in self._open:
            self._open[other] = self._open.pop(name)

    def end(self, name: str, done: Work) -> None:
        if name not in self._open:
            return
        self._work(done)
        self._events += self._open.pop(name)
        if not self._open:
            self.close()

    def close(self) -> None:
        """End the flight: the computation is over, or nothing is under way."""
        if self._events:
            self._flights[tuple(self._events)] += self._times
        self._events, self._open, self._count = [], {}, 0

    def _work(self, done: Work) -> None:
        work = done.since(self._done, self._times)
        if self._events and work != Work():
            self._events.append(work)
        self._done = done


def collectives_of(instruction: Instruction, computation: Computation) -> list[Collective]:
    """What an instruction sends: one collective, or none."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return []
    group = _group(instruction.attributes)
    taken = [computation.instructions[name] for name in instruction.operands]
    sizes = [shape.bytes for operand in taken for shape in operand.shapes]
    size = min(sizes[:2]) if kind == "ragged-all-to-all" else sum(sizes)
    collective = Collective(kind, size * len(group) if kind == "all-gather" else size, group)
    return [collective] if len(group) > 1 else []


def _group(attributes: str) -> tuple[int, ...]:
    """The partitions of the first group; groups are a list, an iota, a mesh or pairs."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(int(part) for part in found[1].split(","))
    iota = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if found := re.search(rf"replica_groups=\[(\d+),(\d+)\]<={iota}", attributes):
        numbers = _iota(found[3], found[4])
        return tuple(numbers.reshape(int(found[1]), int(found[2]))[0].tolist())
    if found := re.search(
        rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({iota}\))? \{{([^}}]*)\}}", attributes
    ):
        mesh, dims, order, chosen = found.groups()
        places = _mesh_group(mesh, chosen)
        return tuple(_iota(dims, order)[list(places)].tolist()) if dims else places
    if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return int(found[1]), int(found[2])
    return ()


def _iota(dims: str, order: str | None) -> np.ndarray:
    """For `2,4` and `1,0`, the numbers 0, 4, 1, 5, …: those of a 2 × 4 array, transposed."""
    sizes = [int(size) for size in dims.split(",")]
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return (
        numbers.transpose([int(axis) for axis in order.split(",")]) if order else numbers
    ).ravel()


def _mesh_group(mesh: str, chosen: str) -> tuple[int, ...]:
    """The group along `'fsdp'` in the mesh `'data'=2,'fsdp'=4`, or along a part of that axis:
    `'fsdp':(1)2` is its factor of 2 that comes after a factor of 1."""
    sizes: dict[str, int] = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    numbers = np.arange(math.prod(sizes.values()))
    strides, stride = {}, numbers.size
    for name, size in sizes.items():
        stride //= size
        strides[name] = stride
    group = np.zeros(1, int)
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen):
        count = int(size) if size else sizes[name]
        step = strides[name] * sizes[name] // (int(before or 1) * count)
        group = (group[:, None] + np.arange(count) * step).reshape(-1)
    return tuple(group.tolist())
