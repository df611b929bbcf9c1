"""What one step of a compiled program costs, read off its HLO text, loops multiplied out.

XLA's own analysis counts the body of a loop once.
"""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from jaxformer.parallel.hlo import Computation, Instruction, Shape, parse
from jaxformer.parallel.loops import Scope, trip_count

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
NO_WORK = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "iota",
}


@dataclass(frozen=True)
class Kernel:
    """A Pallas call, to which the compiler gives no cycles."""

    name: str
    operands: tuple[Shape, ...]
    results: tuple[Shape, ...]
    flops: float | None  # as its author states them
    bytes: float
    blocks: tuple[int, int] | None = None  # of attention: queries and keys worked on at once


@dataclass(frozen=True)
class Work:
    """What keeps a device's cores busy."""

    cycles: float = 0.0
    unestimated: float = 0.0  # bytes from and to HBM that are moved without cycles to their name
    kernels: tuple[tuple[Kernel, float], ...] = ()  # each with how often


@dataclass(frozen=True)
class Collective:
    """Communication of one kind between the devices of `group`.

    `bytes` is the larger side of it on one device: what an all-gather leaves, what a
    reduce-scatter, an all-reduce, an all-to-all or a permutation takes.
    """

    kind: str
    bytes: float
    group: tuple[int, ...]  # partitions; one of the groups that do the same
    beside: Work = Work()  # what is computed while it runs

    @property
    def traffic(self) -> float:
        """Bytes that a device receives, if none is sent twice."""
        size = len(self.group)
        if self.kind == "collective-permute":
            return self.bytes
        return self.bytes * (size - 1) / size * (2 if self.kind == "all-reduce" else 1)


@dataclass
class Cost:
    """Of one execution of a program on one device."""

    flops: float = 0.0  # of matrix products outside of kernels
    cycles: float = 0.0  # as the compiler estimates
    memory: float = 0.0  # bytes from and to HBM
    unestimated: float = 0.0  # the part of `memory` that is moved without cycles to its name
    collectives: Counter[Collective] = field(default_factory=Counter)
    kernels: Counter[Kernel] = field(default_factory=Counter)
    endless: list[str] = field(default_factory=list)  # loops whose count is not known: counted once

    @property
    def work(self) -> Work:
        return Work(self.cycles, self.unestimated, tuple(self.kernels.items()))


def read_cost(text: str) -> Cost:
    """The cost of a compiled module, from `Compiled.as_text()`.

    Raises:
        ValueError: the text has no entry computation.
    """
    return _Walk(parse(text)).cost


class _Walk:
    def __init__(self, computations: dict[str, Computation]) -> None:
        if "ENTRY" not in computations:
            raise ValueError("this is no HLO text: it has no ENTRY computation")
        self._computations = computations
        self.cost = Cost()
        self._walk(Scope(computations["ENTRY"]), 1)

    def _walk(self, scope: Scope, times: int) -> None:
        """Count a computation that is executed so often, in the order of its text."""
        computation = scope.computation
        under_way: dict[str, tuple[list[Collective], Work]] = {}  # and what was done before
        hidden = self.cost.work  # as far as work is taken by a collective that has ended
        for instruction in computation.instructions.values():
            opcode, name = instruction.opcode, instruction.name
            match opcode:
                case "while":
                    (body,) = instruction.called("body")
                    inner = Scope(self._computations[body], instruction, scope)
                    count = trip_count(instruction, inner, self._computations)
                    if count is None:
                        self.cost.endless.append(name)
                    self._walk(inner, times * (1 if count is None else count))
                case "call":
                    for called in instruction.called("to_apply", "calls"):
                        self._walk(Scope(self._computations[called], instruction, scope), times)
                case "conditional":
                    self._walk_longest(instruction, scope, times)
                case _:
                    self._count(instruction, computation, times)
            if opcode.endswith("-start"):
                if started := self._started(instruction, computation, times):
                    under_way[name] = (started, self.cost.work)
            elif instruction.operands and (sent := under_way.pop(instruction.operands[0], None)):
                collectives, begun = sent
                if opcode.endswith("-update"):
                    # The core that sends gets its program at the start, and here what to send.
                    begun = self.cost.work if len(instruction.operands) > 1 else begun
                    under_way[name] = (collectives, begun)
                    continue
                beside = _since(max(begun, hidden, key=_place), self.cost.work, times)
                hidden = self.cost.work
                for collective in collectives:
                    self._send(collective, beside, times)

    def _walk_longest(self, conditional: Instruction, scope: Scope, times: int) -> None:
        """Of the branches the one with most cycles: a step that updates, not one that skips."""
        names = conditional.called("branch_computations", "true_computation", "false_computation")
        before, costs = self.cost, []
        for name in names:
            self.cost = Cost()
            self._walk(Scope(self._computations[name], conditional, scope), times)
            costs.append(self.cost)
        self.cost = before
        longest = max(costs, key=lambda cost: (cost.cycles, cost.memory))
        before.flops += longest.flops
        before.cycles += longest.cycles
        before.memory += longest.memory
        before.unestimated += longest.unestimated
        before.collectives += longest.collectives
        before.kernels += longest.kernels
        before.endless += longest.endless

    def _count(self, instruction: Instruction, computation: Computation, times: int) -> None:
        opcode, cost = instruction.opcode, self.cost
        if opcode in NO_WORK or opcode.endswith(("-done", "-update")):
            return
        cycles = instruction.cycles
        cost.cycles += times * (cycles or 0)
        memory = self._memory(instruction, computation)
        cost.memory += times * memory
        if opcode.endswith("-start"):
            return
        if opcode in COLLECTIVES:
            for collective in _collectives(instruction, computation):
                self._send(collective, Work(), times)
            return
        if opcode == "custom-call":
            if 'custom_call_target="tpu_custom_call"' in instruction.attributes:
                cost.kernels[_kernel(instruction, computation, memory)] += times
            return
        if opcode in ("dot", "convolution"):
            cost.flops += times * _flops(instruction, computation)
        sent = cost.collectives.total()
        whole = Work(unestimated=memory) if cycles is None else Work(cycles)
        for name in instruction.called("calls"):
            fused = self._computations[name]
            # Beside a product, communication runs while the product is computed.
            alone = fused.root.opcode in (*COLLECTIVES, "dynamic-slice")
            self._inside_fusion(fused, Work() if alone else whole, times)
        if cycles is None and sent == cost.collectives.total():
            cost.unestimated += times * memory

    def _inside_fusion(self, computation: Computation, beside: Work, times: int) -> None:
        """Products and communication; cycles and memory are the fusion's as a whole."""
        # Of an all-reduce a slice may be all that is kept.
        sliced = computation.root.opcode == "dynamic-slice"
        kinds = {"all-reduce": "reduce-scatter"} if sliced else {}
        for instruction in computation.instructions.values():
            opcode = instruction.opcode
            if opcode in ("dot", "convolution"):
                self.cost.flops += times * _flops(instruction, computation)
            for one in _collectives(instruction, computation):
                self._send(replace(one, kind=kinds.get(one.kind, one.kind)), beside, times)
            for name in instruction.called("calls"):
                self._inside_fusion(self._computations[name], beside, times)

    def _send(self, collective: Collective, beside: Work, times: int) -> None:
        self.cost.collectives[replace(collective, beside=beside)] += times

    def _started(
        self, start: Instruction, computation: Computation, times: int
    ) -> list[Collective]:
        """What an asynchronous instruction sends, by itself or on another core."""
        found = _collectives(start, computation)
        for name in start.called("to_apply", "calls", "called_computations"):
            called = self._computations[name]
            for instruction in called.instructions.values():
                if sent := _collectives(instruction, called):
                    found += sent
                    self.cost.memory += times * self._memory(instruction, called)
        return found

    def _memory(self, instruction: Instruction, computation: Computation) -> float:
        """Bytes read from and written to HBM; of what is only sliced or updated, the part."""
        operands = [computation.instructions[name] for name in instruction.operands]
        match instruction.opcode:
            case "dynamic-slice" | "slice" | "gather":
                return 2 * instruction.bytes
            case "dynamic-update-slice":
                return 2 * operands[1].bytes
            case "fusion":
                (name,) = instruction.called("calls")
                inner = self._computations[name]
                read = [
                    min(operand.bytes, _used(parameter, inner))
                    for operand, parameter in zip(operands, inner.parameters, strict=True)
                ]
                return sum(read) + _written(instruction, inner)
        return sum(operand.bytes for operand in operands) + instruction.bytes


def _collectives(instruction: Instruction, computation: Computation) -> list[Collective]:
    """What an instruction sends: one collective, or none."""
    kind = instruction.opcode.removesuffix("-start")
    group = _group(instruction.attributes)
    if kind not in COLLECTIVES or len(group) < 2:
        return []
    taken = [computation.instructions[name] for name in instruction.operands]
    size = sum(shape.bytes for operand in taken for shape in operand.shapes)
    return [Collective(kind, size * len(group) if kind == "all-gather" else size, group)]


def _place(work: Work) -> tuple[float, float, float]:
    """By which sums of work are in the order in which they were reached."""
    return work.cycles, work.unestimated, sum(count for _, count in work.kernels)


def _since(before: Work, now: Work, times: int) -> Work:
    """What was done between two sums, in one of so many executions."""
    kernels = Counter(dict(now.kernels))
    kernels.subtract(dict(before.kernels))
    return Work(
        (now.cycles - before.cycles) / times,
        (now.unestimated - before.unestimated) / times,
        tuple((kernel, count / times) for kernel, count in kernels.items() if count),
    )


def _used(parameter: Instruction, fused: Computation) -> float:
    """Bytes of a fusion's parameter that it reads."""
    users = fused.users[parameter.name]
    if len(users) == 1 and users[0].opcode == "bitcast":
        users = fused.users[users[0].name] or users
    total = 0.0
    for user in users:
        if user.opcode in ("dynamic-slice", "slice", "gather"):
            total += user.shapes[0].bytes
        elif user.opcode == "dynamic-update-slice" and len(user.operands) > 1:
            total += 0.0 if user.operands[0] != user.operands[1] else user.shapes[0].bytes
        else:
            return math.inf
    return total


def _written(fusion: Instruction, fused: Computation) -> float:
    """Bytes of a fusion's results that it writes."""
    roots = [fused.root]
    if fused.root.opcode == "tuple":
        roots = [fused.instructions[name] for name in fused.root.operands]
    if len(roots) != len(fusion.shapes):
        return fusion.bytes
    total = 0.0
    for root, shape in zip(roots, fusion.shapes, strict=True):
        while root.opcode == "bitcast":
            root = fused.instructions[root.operands[0]]
        if shape.on_chip:
            continue
        if root.opcode == "dynamic-update-slice":
            total += fused.instructions[root.operands[1]].shapes[0].bytes
        else:
            total += shape.bytes
    return total


def _flops(product: Instruction, computation: Computation) -> float:
    """Of a matrix product or a convolution, a multiply-add counting two."""
    left, right = (computation.instructions[name].shapes[0].dims for name in product.operands[:2])
    result = product.shapes[0].dims
    if product.opcode == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", product.attributes)
        contracted = re.findall(r"\d+", found[1]) if found else []
        return 2.0 * math.prod(result) * math.prod(left[int(axis)] for axis in contracted)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", product.attributes)
    if labels is None:
        raise ValueError(f"convolution without dim_labels: {product.name}")
    lhs, rhs, out = labels[1], labels[2], labels[3]
    flops = 2.0 * result[out.index("b")] * result[out.index("f")] * right[rhs.index("i")]
    window = _window(product.attributes)
    for axis in (label for label in out if label.isdigit()):
        place = int(axis)
        setting = {key: values[place] for key, values in window.items()}
        flops *= _meetings(
            left[lhs.index(axis)],
            right[rhs.index(axis)],
            result[out.index(axis)],
            setting.get("stride", (1, 0))[0],
            setting.get("pad", (0, 0))[0],
            setting.get("lhs_dilate", (1, 0))[0],
            setting.get("rhs_dilate", (1, 0))[0],
        )
    return flops


def _window(attributes: str) -> dict[str, list[tuple[int, int]]]:
    """Every setting of a convolution's window, a pair an axis (of which only padding uses both)."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    settings = {}
    for word in found[1].split() if found else []:
        key, _, values = word.partition("=")
        pairs = (value.split("_") for value in values.split("x"))
        settings[key] = [(int(pair[0]), int(pair[-1])) for pair in pairs]
    return settings


@cache
def _meetings(
    size: int, kernel: int, outputs: int, stride: int, pad: int, lhs_dilate: int, rhs_dilate: int
) -> int:
    """How many pairs of a kernel's and an input's places meet along an axis, in all outputs.

    A batched product is a convolution whose kernel is as wide as the batch, laid so that every
    output meets one place of it.
    """
    begins = np.arange(outputs) * stride - pad
    total = 0
    for place in range(kernel):
        index = begins + place * rhs_dilate
        inside = (index >= 0) & (index % lhs_dilate == 0) & (index // lhs_dilate < size)
        total += int(np.count_nonzero(inside))
    return total


def _group(attributes: str) -> tuple[int, ...]:
    """The partitions of the first group, of a list of groups, an iota, a mesh or of pairs."""
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
    """Of `2,4` and `1,0` the numbers 0, 4, 1, 5, …: those of a 2 × 4 array, transposed."""
    sizes = [int(size) for size in dims.split(",")]
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return (
        numbers.transpose([int(axis) for axis in order.split(",")]) if order else numbers
    ).ravel()


def _mesh_group(mesh: str, chosen: str) -> tuple[int, ...]:
    """Of `'data'=2,'fsdp'=4` the group along `'fsdp'`, or along `'fsdp':(1)2`: the 2 of it that
    have 1 axis of it before them."""
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


def _kernel(call: Instruction, computation: Computation, memory: float) -> Kernel:
    stated = re.search(r'"cost_estimate":(\{[^}]*\})', call.attributes)
    estimate = json.loads(stated[1]) if stated else {}
    name = re.search(r'op_name="([^"]*)"', call.attributes)
    operands = tuple(
        shape for operand in call.operands for shape in computation.instructions[operand].shapes
    )
    blocks = re.search(r'block_q\w*\\?": (\d+).*?block_kv\w*\\?": (\d+)', call.attributes)
    return Kernel(
        name[1] if name else call.name,
        operands,
        call.shapes,
        float(estimate["flops"]) if "flops" in estimate else None,
        memory,
        (int(blocks[1]), int(blocks[2])) if blocks else None,
    )
