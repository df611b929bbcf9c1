"""The text of a compiled program: computations, and the instructions they are made of."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

NO_ESTIMATE = 2**63 - 1  # cycles the compiler does not know


@dataclass(frozen=True)
class Shape:
    """One array of an instruction's result."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool  # in the vector memory, not in HBM

    @property
    def bytes(self) -> float:
        bits = re.search(r"\d+", self.dtype)
        width = int(bits[0]) / 8 if bits else float(self.dtype == "pred")
        return math.prod(self.dims) * width


@dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # the arrays of the result, a tuple's flattened
    operands: tuple[str, ...]
    inside: str  # the text in its parentheses
    attributes: str  # the text after them
    is_root: bool

    @property
    def bytes(self) -> float:
        """Bytes of the result that lie in HBM."""
        return sum(shape.bytes for shape in self.shapes if not shape.on_chip)

    @property
    def index(self) -> int:
        """Which element of a tuple a get-tuple-element takes."""
        found = re.search(r"index=(\d+)", self.attributes)
        if found is None:
            raise ValueError(f"{self.name} takes no element of a tuple")
        return int(found[1])

    @property
    def cycles(self) -> int | None:
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return None if found is None or int(found[1]) == NO_ESTIMATE else int(found[1])

    def called(self, *keys: str) -> list[str]:
        """The computations that the attributes `keys` name."""
        names = []
        for key in keys:
            if found := re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes):
                names += re.findall(r"%?([\w.\-]+)", found[1])
        return names


@dataclass(frozen=True)
class Computation:
    name: str
    instructions: dict[str, Instruction]

    @cached_property
    def root(self) -> Instruction:
        return next(i for i in self.instructions.values() if i.is_root)

    @cached_property
    def parameters(self) -> list[Instruction]:
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(i.inside))

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in instruction.operands:
                users[operand].append(instruction)
        return users


END = re.compile(r'\}(, execution_thread="\w+")?')  # of a computation, on any core


def parse(text: str) -> dict[str, Computation]:
    """The computations of a module by name; the one it starts in is also under `ENTRY`."""
    computations: dict[str, Computation] = {}
    current: dict[str, Instruction] | None = None
    for line in _logical_lines(text):
        if current is None:
            if header := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
                current = {}
                computation = Computation(header[2], current)
                computations[header[2]] = computation
                if header[1]:
                    computations["ENTRY"] = computation
        elif END.fullmatch(line):
            current = None
        elif instruction := _instruction(line):
            current[instruction.name] = instruction
    return computations


def _logical_lines(text: str) -> Iterator[str]:
    """Lines, where an attribute with line breaks in it, as kernels have, is joined into one."""
    whole = ""
    for line in text.splitlines():
        if (
            not line
            or END.fullmatch(line)
            or re.match(r"(  )?(ROOT |ENTRY )?%?[\w.\-]+ (=|\()", line)
        ):
            yield whole
            whole = line
        else:
            whole += line
    yield whole


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    start = head.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    opcode = re.match(r"\s*([\w\-]+)\(", line[end:])
    if opcode is None:
        return None
    opens = end + opcode.end() - 1
    closes = _closing(line, opens)
    inside = line[opens + 1 : closes]
    names = re.findall(r"%([\w.\-]+)", inside) if opcode[1] != "constant" else []
    return Instruction(
        head[2],
        opcode[1],
        tuple(_shapes(line[start:end])),
        tuple(names),
        inside,
        line[closes + 1 :],
        head[1] is not None,
    )


def _closing(line: str, start: int) -> int:
    """Where the parenthesis that opens at `start` is closed."""
    depth = 0
    for index in range(start, len(line)):
        depth += (line[index] == "(") - (line[index] == ")")
        if depth == 0:
            return index
    raise ValueError(f"HLO with a parenthesis that is not closed: {line[:200]}")


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, dims, layout in re.findall(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?", text):
        sizes = tuple(int(size) for size in re.findall(r"\d+", dims))
        yield Shape(dtype, sizes, on_chip=re.search(r"S\([1-9]", layout) is not None)
