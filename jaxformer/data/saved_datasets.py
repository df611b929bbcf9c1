"""Datasets that `datasets` has saved to a folder, or keeps in its cache: rows by their numbers."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxformer.data.arrow_rows import hf_rows
from jaxformer.data.rows import Column, Policies, Row
from jaxformer.data.units import Unit, plan_rows
from jaxformer.errors import UserError, did_you_mean
from jaxformer.paths import local_path

DEFAULT_SPLIT = "train"


@dataclass(frozen=True)
class Table:
    """A `datasets.Dataset`, whose units are ranges of rows."""

    dataset: Any
    name: str
    policies: Policies

    @property
    def size(self) -> int:
        return self.dataset.num_rows

    def units(self, target_bytes: int) -> tuple[Unit, ...]:
        return plan_rows(self.size, self.dataset.data.nbytes, target_bytes)

    def rows(self, columns: Sequence[Column], unit: Unit | None = None) -> Iterator[Row]:
        part, parts = (unit.part, unit.parts) if unit else (0, 1)
        return hf_rows(self.dataset, columns, self.policies, self.name, part, parts)


@dataclass(frozen=True)
class SavedSource:
    """`where` is FOLDER or FOLDER:SPLIT."""

    name: str
    where: str
    policies: Policies

    @property
    def identity(self) -> str:
        return f"hf:{self.folder}:{self.split or DEFAULT_SPLIT}"

    @property
    def folder(self) -> Path:
        return local_path(self._named).resolve()

    @property
    def split(self) -> str | None:
        return self.where[len(self._named) :].removeprefix(":") or None

    @property
    def size(self) -> int:
        return self._table.size

    def fingerprint(self) -> str:
        folder = self.folder
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        states = [(str(file.relative_to(folder)), file.stat()) for file in files]
        rows = [[name, state.st_size, state.st_mtime_ns] for name, state in states]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def units(self, target_bytes: int) -> tuple[Unit, ...]:
        return self._table.units(target_bytes)

    def rows(self, columns: Sequence[Column], unit: Unit | None = None) -> Iterator[Row]:
        return self._table.rows(columns, unit)

    @property
    def _named(self) -> str:
        folder = saved_folder(self.where)
        assert folder is not None
        return folder

    @cached_property
    def _table(self) -> Table:
        return Table(self._load(), self.name, self.policies)

    def stream(self) -> Any:
        """The `datasets.Dataset`, which is not copied."""
        return self._load()

    def _load(self) -> Any:
        import datasets

        try:
            saved = datasets.load_from_disk(str(self.folder))
        except (FileNotFoundError, ValueError, OSError) as error:
            raise UserError(
                f"data source '{self.name}': {self.folder} holds no dataset saved by "
                f"datasets.save_to_disk ({error}); name files as parquet:GLOB or jsonl:GLOB"
            ) from None
        if not isinstance(saved, datasets.DatasetDict):
            if self.split:
                raise UserError(
                    f"data source '{self.name}': the folder has no splits; drop ':{self.split}'"
                )
            return saved
        split = self.split or DEFAULT_SPLIT
        if split not in saved:
            raise no_split(self.name, split, [str(name) for name in saved])
        return saved[split]


def saved_folder(where: str) -> str | None:
    """FOLDER of FOLDER:SPLIT, if there is such a folder."""
    for name in (where, where.partition(":")[0]):
        if local_path(name).is_dir():
            return name
    return None


def no_split(source: str, split: str, splits: Sequence[str]) -> UserError:
    return UserError(
        f"data source '{source}': no split '{split}'; splits: {', '.join(splits)}."
        f"{did_you_mean(split, splits)}"
    )
