"""A source that is a list of files, each read by the reader of its kind."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxformer.data.array_records import array_record_rows
from jaxformer.data.arrow_rows import parquet_rows
from jaxformer.data.finding import Found
from jaxformer.data.json_rows import jsonl_rows
from jaxformer.data.rows import Column, Policies, Row
from jaxformer.data.text_rows import line_rows, text_rows
from jaxformer.data.units import FilePart, Unit, plan_units
from jaxformer.data.webdataset import webdataset_rows
from jaxformer.storage import Place

Reader = Callable[[FilePart, Sequence[Column], Policies], Iterator[Row]]
READERS: dict[str, Reader] = {
    "text": text_rows,
    "lines": line_rows,  # what the Hub's datasets of text are
    "jsonl": jsonl_rows,
    "parquet": parquet_rows,
    "arrayrecord": array_record_rows,
    "webdataset": webdataset_rows,
}


@dataclass(frozen=True)
class FileSource:
    """The files that `find` finds; it is asked again for the fingerprint."""

    name: str
    kind: str
    identity: str
    policies: Policies
    find: Callable[[], Found]

    def __post_init__(self) -> None:
        len(self._found)  # a mistake in the pattern is told at once

    @cached_property
    def _found(self) -> Found:
        return self.find()

    @property
    def files(self) -> tuple[Place, ...]:
        return tuple(self._found)

    @property
    def size(self) -> int:
        return sum(stored.bytes for stored in self._found.values())

    def fingerprint(self) -> str:
        rows = [[str(place), each.bytes, each.version] for place, each in self.find().items()]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def units(self, target_bytes: int) -> tuple[Unit, ...]:
        return plan_units([stored.bytes for stored in self._found.values()], target_bytes)

    def rows(self, columns: Sequence[Column], unit: Unit | None = None) -> Iterator[Row]:
        found = list(self._found.items())
        unit = unit or Unit(0, len(found), 0, 1, self.size)
        before = 0
        for place, stored in found[unit.first : unit.end]:
            file = FilePart(place, stored.bytes, unit.part, unit.parts)
            for row in READERS[self.kind](file, columns, self.policies):
                yield row._replace(done=before + row.done) if before else row
            before += file.size
