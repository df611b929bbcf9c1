"""Datasets read through `datasets`: from the Hugging Face Hub, or from a folder saved by it."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxformer.data.rows import Column, Policies, Row, hf_rows
from jaxformer.errors import UserError, did_you_mean
from jaxformer.paths import local_path

DEFAULT_SPLIT = "train"
PART = r"[A-Za-z0-9][\w.-]*"


@dataclass(frozen=True)
class HubSource:
    """`where` is FOLDER, NAME, ORG/NAME or ORG/NAME/CONFIG, and `:SPLIT` may follow."""

    name: str
    where: str
    policies: Policies

    def __post_init__(self) -> None:
        if self.folder is None and not re.fullmatch(rf"{PART}(/{PART}){{0,2}}", self.path):
            raise UserError(
                f"data source '{self.name}': no such folder, and not the name of a dataset; "
                f"allowed: hf:FOLDER, hf:NAME, hf:ORG/NAME, hf:ORG/NAME/CONFIG, then :SPLIT"
            )

    @cached_property
    def path(self) -> str:
        if local_path(self.where).is_dir():
            return self.where
        return self.where.partition(":")[0]

    @cached_property
    def split(self) -> str | None:
        return self.where[len(self.path) :].removeprefix(":") or None

    @cached_property
    def folder(self) -> Path | None:
        folder = local_path(self.path)
        return folder.resolve() if folder.is_dir() else None

    @property
    def identity(self) -> str:
        return f"hf:{self.folder or self.path}:{self.split or DEFAULT_SPLIT}"

    @property
    def size(self) -> int:
        return self._dataset.num_rows

    def fingerprint(self) -> str:
        """A hash of a folder's files, or of a Hub dataset's name, since that is prepared once."""
        if self.folder is None:
            return hashlib.sha256(self.identity.encode()).hexdigest()
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        states = [(str(file.relative_to(self.folder)), file.stat()) for file in files]
        rows = [[name, state.st_size, state.st_mtime_ns] for name, state in states]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def rows(self, columns: Sequence[Column]) -> Iterator[Row]:
        return hf_rows(self._dataset, columns, self.policies, self.name)

    @cached_property
    def _dataset(self) -> Any:
        return self._saved() if self.folder else self._of_the_hub()

    def _saved(self) -> Any:
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
        splits = [str(name) for name in saved]
        if split not in splits:
            raise UserError(
                f"data source '{self.name}': no split '{split}'; splits: {', '.join(splits)}."
                f"{did_you_mean(split, splits)}"
            )
        return saved[split]

    def _of_the_hub(self) -> Any:
        import datasets
        from datasets.exceptions import DatasetsError

        parts = self.path.split("/")
        name, config = "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
        try:
            return datasets.load_dataset(name, config, split=self.split or DEFAULT_SPLIT)
        except (ValueError, OSError, DatasetsError) as error:
            raise UserError(
                f"data source '{self.name}': the Hub gave no dataset '{name}', configuration "
                f"{config or 'default'}, split {self.split or DEFAULT_SPLIT} ({error}). Check the "
                f"names and the connection (HF_HUB_OFFLINE=1 uses what was downloaded before)"
            ) from None
