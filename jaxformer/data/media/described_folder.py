"""Recordings in a folder with their texts in a table, as `datasets` reads it: `audiofolder:FOLDER`
has FOLDER/metadata.jsonl or FOLDER/metadata.csv, whose column `file_name` names files in FOLDER."""

import csv
import io
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxformer.data.media.folder import fingerprint_of, folder_of, size_of, tried
from jaxformer.data.media.records import Labels, Record, Wanted, no_column, target_of, wrong
from jaxformer.data.rows import BadRow, named_kind
from jaxformer.errors import UserError
from jaxformer.reading import read_text

TABLES = ("metadata.jsonl", "metadata.csv")
NAME = "file_name"


class DescribedFolder:
    """The files that a table names, in its order.

    Raises:
        UserError: there is no such folder, no table or two, or a column is missing in it.
    """

    labels = Labels("texts")

    def __init__(self, name: str, where: str, wanted: Wanted) -> None:
        self.name, self.folder, self._wanted = name, folder_of(name, where), wanted
        self.identity = f"{name.partition(':')[0]}:{self.folder}"
        tables = [self.folder / each for each in TABLES if (self.folder / each).is_file()]
        if len(tables) != 1:
            raise UserError(
                f"data source '{name}': {'two tables' if tables else 'no table'} of texts; give "
                f"{self.folder}/{TABLES[0]} or {TABLES[1]}, with the columns {NAME} and "
                f"{wanted.target}"
            )
        self._table = tables[0]

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        """The rows of the table.

        Raises:
            UserError: it is damaged, or a column is missing in its first row.
        """
        text = read_text(self._table)
        try:
            if self._table.suffix == ".csv":
                rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
            else:
                rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        except (csv.Error, ValueError) as error:
            raise UserError(f"{self._table}: damaged or of another kind ({error})") from None
        if any(not isinstance(row, dict) for row in rows):
            raise UserError(f"{self._table}: a row is no object with {NAME} and text; fix it")
        if rows and NAME not in rows[0]:
            raise UserError(
                f"{self._table}: no column '{NAME}'; columns: {', '.join(map(str, rows[0]))}. Name "
                f"the files of the folder there"
            )
        if rows and self._wanted.target not in rows[0]:
            raise no_column(str(self._table), self._wanted, "text", list(rows[0]))
        return rows

    def _file(self, row: dict[str, Any]) -> Path | None:
        """The file that a row names, if it does, in the folder."""
        name = row.get(NAME)
        file = self.folder / name if isinstance(name, str) and name else None
        return file if file is not None and file.is_file() else None

    @cached_property
    def _files(self) -> list[Path]:
        return [file for row in self._rows if (file := self._file(row)) is not None]

    @cached_property
    def size(self) -> int:
        return size_of(self._files)

    @property
    def traces(self) -> set[str]:
        return {self.identity}

    def fingerprint(self) -> str:
        return fingerprint_of(self.folder, [self._table, *self._files])

    def records(self, limit: int | None) -> Iterator[Record]:
        done = 0
        for number, row in enumerate(self._rows, start=1):
            place, column = f"{self._table}, row {number}", self._wanted.target
            try:
                file = self._file(row)
                if file is None:
                    name = row.get(NAME)
                    said = name if isinstance(name, str) else named_kind(name)
                    raise wrong(place, f"column '{NAME}' is {said}, and there is no such file")
                target = target_of(row.get(column), self.labels, limit, place, column)
            except BadRow as fault:
                yield Record(b"", 0, place, done, fault)
                continue
            content = tried(file, Path.read_bytes)
            done += len(content)
            yield Record(content, target, f"{place} ({row[NAME]})", done)
