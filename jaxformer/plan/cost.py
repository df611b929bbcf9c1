"""What one step of a compiled program costs, read from its HLO text with loops multiplied out.

XLA's own analysis counts the body of a loop once.
"""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from jaxformer.parallel.rounds import FURTHER
from jaxformer.plan.collectives import COLLECTIVES, Collective, Flight, UnderWay, collectives_of
from jaxformer.plan.hlo import Computation, Instruction, parse
from jaxformer.plan.loops import Scope, trip_count
from jaxformer.plan.work import Kernel, Work

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


@dataclass
class Cost:
    """The cost of one execution of a program on one device."""

    flops: float = 0.0  # of matrix products outside of kernels
    cycles: float = 0.0  # as the compiler estimates
    memory: float = 0.0  # bytes from and to HBM
    unestimated: float = 0.0  # the part of `memory` that no cycles are given for
    flights: Counter[Flight] = field(default_factory=Counter)
    kernels: Counter[Kernel] = field(default_factory=Counter)
    endless: list[str] = field(default_factory=list)  # loops whose count is not known: counted once

    @property
    def collectives(self) -> Counter[Collective]:
        counts: Counter[Collective] = Counter()
        for flight, times in self.flights.items():
            for event in flight:
                if isinstance(event, Collective):
                    counts[event] += times
        return counts

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
            raise ValueError("this is not HLO text: it has no ENTRY computation")
        self._computations = computations
        self.cost = Cost()
        self._walk(Scope(computations["ENTRY"]), 1)

    def _walk(self, scope: Scope, times: int) -> None:
        """Count a computation that runs `times` times, in the order of its text."""
        computation = scope.computation
        under_way = UnderWay(self.cost.flights, times)
        for instruction in computation.instructions.values():
            match instruction.opcode:
                case "while" if FURTHER in instruction.attributes:
                    pass  # rounds that equally busy experts do not need
                case "while":
                    (body,) = instruction.called("body")
                    inner = Scope(self._computations[body], instruction, scope)
                    count = trip_count(instruction, inner, self._computations)
                    if count is None:
                        self.cost.endless.append(instruction.name)
                    self._walk(inner, times * (1 if count is None else count))
                case "call":
                    for name in instruction.called("to_apply", "calls"):
                        self._walk(Scope(self._computations[name], instruction, scope), times)
                case "conditional":
                    self._walk_longest(instruction, scope, times)
                case _:
                    self._count(instruction, computation, times, under_way)
        under_way.close()

    def _walk_longest(self, conditional: Instruction, scope: Scope, times: int) -> None:
        """Count the branch with the most cycles: a step that updates, not one that skips."""
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
        before.flights += longest.flights
        before.kernels += longest.kernels
        before.endless += longest.endless

    def _count(
        self, instruction: Instruction, computation: Computation, times: int, under_way: UnderWay
    ) -> None:
        opcode, cost = instruction.opcode, self.cost
        if opcode in NO_WORK:
            return
        if opcode.endswith(("-start", "-update", "-done")):
            self._count_part(instruction, computation, times, under_way)
            return
        fused = [self._computations[name] for name in instruction.called("calls")]
        if fused and (end := re.search(r'"AsyncCollective(Start|Done)"', fused[0].root.attributes)):
            chain = next(filter(None, map(_chain, fused[0].instructions.values())), "chain")
            if end[1] == "Start":
                sent = self._started(instruction, computation, times)
                under_way.begin(chain, sent, cost.work)
            else:
                under_way.end(chain, cost.work)
            return
        cycles, memory = instruction.cycles, self._memory(instruction, computation)
        cost.cycles += times * (cycles or 0)
        cost.memory += times * memory
        if opcode == "custom-call":
            if 'custom_call_target="tpu_custom_call"' in instruction.attributes:
                cost.kernels[_kernel(instruction, computation, memory)] += times
            return
        if opcode in ("dot", "convolution"):
            cost.flops += times * _flops(instruction, computation)
        sent = [one for inner in fused for one in self._inside_fusion(inner, times)]
        sent += collectives_of(instruction, computation)
        if any(inner.root.opcode not in (*COLLECTIVES, "dynamic-slice") for inner in fused):
            # Beside a product, communication runs while the product is computed.
            for collective in sent:
                cost.flights[collective, Work(cycles or 0.0), 0] += times
        elif sent:
            under_way.begin(instruction.name, sent, cost.work)
            under_way.end(instruction.name, cost.work)
        if cycles is None and not sent and opcode not in COLLECTIVES:
            cost.unestimated += times * memory

    def _count_part(
        self, instruction: Instruction, computation: Computation, times: int, under_way: UnderWay
    ) -> None:
        """Count the start, an update or the end of an asynchronous instruction."""
        opcode, name, operands = instruction.opcode, instruction.name, instruction.operands
        if opcode.endswith("-done"):
            under_way.end(operands[0], self.cost.work)
            return
        start = instruction
        if opcode.endswith("-start"):
            self.cost.cycles += times * (instruction.cycles or 0)
            self.cost.memory += times * self._memory(instruction, computation)
        else:
            start = computation.instructions[operands[0]]
        # Another core may get its program at the start, and what it sends with an update.
        if opcode.endswith("-update") and (len(operands) == 1 or start.operands):
            under_way.hand_over(start.name, name)
        elif operands:
            under_way.begin(name, self._started(start, computation, times), self.cost.work)

    def _inside_fusion(self, computation: Computation, times: int) -> list[Collective]:
        """Count products and return what is sent; cycles and memory are the fusion's as a whole."""
        found = []
        for instruction in computation.instructions.values():
            if instruction.opcode in ("dot", "convolution"):
                self.cost.flops += times * _flops(instruction, computation)
            if _chain(instruction) is None:
                found += collectives_of(instruction, computation)
            for name in instruction.called("calls"):
                found += self._inside_fusion(self._computations[name], times)
        # An all-reduce of which only a slice is kept is a reduce-scatter.
        sliced = computation.root.opcode == "dynamic-slice"
        kinds = {"all-reduce": "reduce-scatter"} if sliced else {}
        return [replace(one, kind=kinds.get(one.kind, one.kind)) for one in found]

    def _started(
        self, start: Instruction, computation: Computation, times: int
    ) -> list[Collective]:
        """What an asynchronous instruction sends, by itself or on another core."""
        found = collectives_of(start, computation)
        for name in start.called("to_apply", "calls", "called_computations"):
            called = self._computations[name]
            for instruction in called.instructions.values():
                if sent := collectives_of(instruction, called):
                    found += sent
                    self.cost.memory += times * self._memory(instruction, called)
        return found

    def _memory(self, instruction: Instruction, computation: Computation) -> float:
        """Bytes read from and written to HBM; of an array sliced or updated, only that part."""
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
                    min(operand.bytes, self._read(parameter, inner))
                    for operand, parameter in zip(operands, inner.parameters, strict=True)
                ]
                return sum(read) + self._written(instruction, inner)
        return sum(operand.bytes for operand in operands) + instruction.bytes

    def _read(self, parameter: Instruction, fused: Computation) -> float:
        """Bytes of a fusion's parameter that it reads."""
        users = fused.users[parameter.name]
        if len(users) == 1 and users[0].opcode == "bitcast":
            users = fused.users[users[0].name] or users
        total = 0.0
        for user in users:
            match user.opcode:
                case "dynamic-slice" | "slice" | "gather":
                    total += user.shapes[0].bytes
                case "dynamic-update-slice":
                    total += 0.0 if user.operands[0] != user.operands[1] else user.shapes[0].bytes
                case "fusion":
                    (name,) = user.called("calls")
                    inner = self._computations[name]
                    for operand, its in zip(user.operands, inner.parameters, strict=True):
                        total += self._read(its, inner) if operand == parameter.name else 0.0
                case "tuple":  # handed on as it is
                    pass
                case _ if _chain(user) is None:
                    return math.inf
        return total

    def _written(self, fusion: Instruction, fused: Computation) -> float:
        """Bytes of a fusion's results that it writes."""
        roots = [fused.root]
        if fused.root.opcode == "tuple":
            roots = [fused.instructions[name] for name in fused.root.operands]
        if len(roots) != len(fusion.shapes):
            return fusion.bytes
        return sum(
            min(shape.bytes, self._of_root(root, fused))
            for root, shape in zip(roots, fusion.shapes, strict=True)
            if not shape.on_chip
        )

    def _of_root(self, root: Instruction, fused: Computation) -> float:
        """Bytes of its array that one result of a fusion changes."""
        while root.opcode == "bitcast":
            root = fused.instructions[root.operands[0]]
        if root.opcode == "dynamic-update-slice":
            return fused.instructions[root.operands[1]].shapes[0].bytes
        if root.opcode == "fusion":
            (name,) = root.called("calls")
            inner = self._computations[name]
            return self._of_root(inner.root, inner)
        return 0.0 if root.opcode == "parameter" or _chain(root) is not None else math.inf


def _chain(instruction: Instruction) -> str | None:
    """Which collective in parts an instruction belongs to, if any: one fusion starts it, others
    advance it, and the last one ends when it is done."""
    found = re.search(r'chain_id="(\d+)"', instruction.attributes)
    return f"chain {found[1]}" if found else None


def _flops(product: Instruction, computation: Computation) -> float:
    """FLOPs of a matrix product or a convolution; a multiply-add counts as two."""
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
    """Every setting of a convolution's window, a pair per axis (only padding uses both)."""
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
    """How many pairs of kernel and input positions meet along an axis, over all outputs.

    A batched product is a convolution whose kernel is as wide as the batch, placed so that every
    output meets one position of it.
    """
    begins = np.arange(outputs) * stride - pad
    total = 0
    for place in range(kernel):
        index = begins + place * rhs_dilate
        inside = (index >= 0) & (index % lhs_dilate == 0) & (index // lhs_dilate < size)
        total += int(np.count_nonzero(inside))
    return total


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
