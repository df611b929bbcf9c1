"""The lines of a file, or of a part of it: a line belongs to the part in which it begins."""

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from jaxformer.data.units import FilePart
from jaxformer.data.unpacking import TextFile


class Line(NamedTuple):
    """A line with its end, the name of its place, and how much of the part has been read."""

    content: bytes
    place: str
    done: int


def lines_of(text: TextFile, file: FilePart) -> Iterator[Line]:
    """Lines are named by their numbers in a whole file, and by where they begin in a part.

    A file that cannot be cut is all in its first part.
    """
    if file.is_whole or not text.can_be_cut:
        if file.part == 0:
            yield from _numbered(text, file)
        return
    text.start_at_a_line(file.begin)
    begin = text.done if file.part else 0  # a byte order mark may have been passed

    def following() -> Line | None:
        nonlocal begin
        if begin >= file.end or not (line := text.readline()):
            return None
        place, begin = f"{file.place}, byte {begin}", text.done
        return Line(line, place, min(begin, file.end) - file.begin)

    yield from iter(following, None)  # which, unlike a loop, does not hold a line


def _numbered(text: TextFile, file: FilePart) -> Iterator[Line]:
    numbers = count(1)

    def following() -> Line | None:
        if not (line := text.readline()):
            return None
        return Line(line, f"{file.place}, line {next(numbers)}", min(text.done, file.size))

    return iter(following, None)
