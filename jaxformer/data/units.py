"""Cuts a source into units that workers prepare on their own.

Units follow from the list of files and their sizes alone, so every process plans the same ones
without opening a file. Whether a file can be cut shows when it is opened: if it cannot, its first
part has all of its rows, and the others have none.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxformer.storage import Place


class Unit(NamedTuple):
    """Files [first, end) of a source, or part `part` of `parts` of the one file `first`; `size` is
    what `Row.done` grows to: the bytes that are stored, or the rows of a saved dataset."""

    first: int
    end: int
    part: int
    parts: int
    size: int


class FilePart(NamedTuple):
    """Part `part` of `parts` of a file of `file_size` bytes."""

    place: Place
    file_size: int
    part: int = 0
    parts: int = 1

    @property
    def begin(self) -> int:
        return share(self.file_size, self.part, self.parts)

    @property
    def end(self) -> int:
        return share(self.file_size, self.part + 1, self.parts)

    @property
    def size(self) -> int:
        return self.end - self.begin

    @property
    def is_whole(self) -> bool:
        return self.parts == 1


def share(size: int, part: int, parts: int) -> int:
    """Where part `part` begins."""
    return size * part // parts


def number_of_parts(size: int, target: int) -> int:
    return max(1, -(-size // target))


def plan_units(sizes: Sequence[int], target: int) -> tuple[Unit, ...]:
    """Small files together until they reach `target` bytes, large ones in parts of at most that."""
    units: list[Unit] = []
    first = waiting = 0
    for number, size in enumerate(sizes):
        if size > target:
            if first < number:
                units.append(Unit(first, number, 0, 1, waiting))
            parts = number_of_parts(size, target)
            for part in range(parts):
                part_size = share(size, part + 1, parts) - share(size, part, parts)
                units.append(Unit(number, number + 1, part, parts, part_size))
            first, waiting = number + 1, 0
            continue
        waiting += size
        if waiting >= target:
            units.append(Unit(first, number + 1, 0, 1, waiting))
            first, waiting = number + 1, 0
    if first < len(sizes):
        units.append(Unit(first, len(sizes), 0, 1, waiting))
    return tuple(units)


def plan_rows(rows: int, size: int, target: int) -> tuple[Unit, ...]:
    """Ranges of `rows` that take `size` bytes together; part p begins at row rows·p // parts."""
    parts = number_of_parts(size, target)
    bounds = [share(rows, part, parts) for part in range(parts + 1)]
    return tuple(Unit(0, 1, part, parts, bounds[part + 1] - bounds[part]) for part in range(parts))
