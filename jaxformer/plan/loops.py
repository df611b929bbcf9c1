"""How often the loops of a compiled program run, which its text does not say."""

import math
import re
from dataclasses import dataclass

from jaxformer.plan.hlo import Computation, Instruction


@dataclass(frozen=True)
class Scope:
    """A computation as one instruction of another one calls it."""

    computation: Computation
    caller: Instruction | None = None
    outer: "Scope | None" = None

    def value(self, name: str) -> int | None:
        """The integer that the scalar `name` is, if it is the same whenever it is computed."""
        instruction = self.computation.instructions[name]
        operands = instruction.operands
        match instruction.opcode:
            case "constant":
                return (
                    int(instruction.inside) if re.fullmatch(r"-?\d+", instruction.inside) else None
                )
            case "copy" | "bitcast" | "reshape" | "convert" | "copy-start" | "copy-done":
                return self.value(operands[0])
            case "get-tuple-element":
                return self.element(operands[0], instruction.index)
            case "parameter" if self.caller is not None and self.caller.opcode == "fusion":
                assert self.outer is not None
                return self.outer.value(self.caller.operands[int(instruction.inside)])
            case "add" | "subtract" | "multiply":
                a, b = self.value(operands[0]), self.value(operands[1])
                if a is None or b is None:
                    return None
                return {"add": a + b, "subtract": a - b, "multiply": a * b}[instruction.opcode]
        return None

    def element(self, name: str, index: int) -> int | None:
        """The same for element `index` of the tuple `name`."""
        instruction = self.computation.instructions[name]
        match instruction.opcode:
            case "tuple":
                return self.value(instruction.operands[index])
            case "opt-barrier" | "copy":
                return self.element(instruction.operands[0], index)
            case "parameter" if self.caller is not None and self.caller.opcode == "while":
                assert self.outer is not None
                return (
                    self.outer.element(self.caller.operands[0], index)
                    if self._kept(index)
                    else None
                )
        return None

    def _kept(self, index: int) -> bool:
        """Whether the loop with this body passes on element `index` unchanged."""
        root = self.computation.root
        if root.opcode != "tuple":
            return False
        element = self.computation.instructions[root.operands[index]]
        if element.opcode != "get-tuple-element" or element.index != index:
            return False
        return self.computation.instructions[element.operands[0]].opcode == "parameter"


def trip_count(loop: Instruction, body: Scope, computations: dict[str, Computation]) -> int | None:
    """How often a loop runs, if its counter goes from a start to a limit by a step; else None.

    Args:
        body: the loop's body, as the loop calls it.
    """
    if known := re.search(r'known_trip_count":?\{"n":"?(\d+)', loop.attributes):
        return int(known[1])
    (name,) = loop.called("condition")
    condition = Scope(computations[name], loop, body.outer)
    test, scope = condition.computation.root, condition
    if test.opcode == "fusion":
        (fused,) = test.called("calls")
        scope = Scope(computations[fused], test, condition)
        test = scope.computation.root
    direction = re.search(r"direction=(\w+)", test.attributes)
    if test.opcode != "compare" or direction is None:
        return None
    left, right = test.operands
    flipped = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE"}.get(direction[1], direction[1])
    for one, other, order in ((left, right, direction[1]), (right, left, flipped)):
        counter = _counter(scope, one)
        step = None if counter is None else _step(body, counter, computations)
        if counter is None or not step or body.outer is None:
            continue
        start, limit = body.outer.element(loop.operands[0], counter), _limit(scope, other, body)
        if start is None or limit is None:
            return None
        match order:
            case "LT" | "GT" | "NE":
                return max(0, math.ceil((limit - start) / step))
            case "LE" | "GE":
                return max(0, math.floor((limit - start) / step) + 1)
    return None


def _step(body: Scope, counter: int, computations: dict[str, Computation]) -> int | None:
    """What the loop adds to its counter."""
    computation = body.computation
    if computation.root.opcode != "tuple":
        return None
    scope, new = body, computation.instructions[computation.root.operands[counter]]
    while new.opcode in ("copy", "bitcast"):
        new = computation.instructions[new.operands[0]]
    if new.opcode == "fusion":
        (fused,) = new.called("calls")
        scope = Scope(computations[fused], new, body)
        new = scope.computation.root
    if new.opcode not in ("add", "subtract"):
        return None
    for one, other in (new.operands, new.operands[::-1]):
        if _counter(scope, one) == counter:
            step = scope.value(other)
            return -step if step is not None and new.opcode == "subtract" else step
    return None


def _counter(scope: Scope, name: str) -> int | None:
    """Which element of the loop's tuple `name` is."""
    instruction = scope.computation.instructions[name]
    if instruction.opcode in ("copy", "bitcast", "convert"):
        return _counter(scope, instruction.operands[0])
    if instruction.opcode == "parameter" and scope.caller and scope.caller.opcode == "fusion":
        assert scope.outer is not None
        return _counter(scope.outer, scope.caller.operands[int(instruction.inside)])
    if instruction.opcode == "get-tuple-element":
        source = scope.computation.instructions[instruction.operands[0]]
        return instruction.index if source.opcode == "parameter" else None
    return None


def _limit(scope: Scope, name: str, body: Scope) -> int | None:
    """What the counter is compared with: a constant, or an element that the loop never changes."""
    index = _counter(scope, name)
    if index is None:
        return scope.value(name)
    return None if body.caller is None else body.element(body.computation.parameters[0].name, index)
