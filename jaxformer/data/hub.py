"""Datasets of the Hugging Face Hub.

Those whose files are Parquet, lines of JSON or text are read from there as streams, file by file.
Others are downloaded and converted by `datasets`, which guesses types and keeps a copy of its own.
Either way all is of one commit, the newest at the time of opening unless a revision is named.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.data.file_source import FileSource
from jaxformer.data.finding import look_up
from jaxformer.data.rows import Column, Policies, Row
from jaxformer.data.saved_datasets import DEFAULT_SPLIT, Table, no_split
from jaxformer.data.units import Unit
from jaxformer.errors import UserError
from jaxformer.storage import Place, is_url

PART = r"[A-Za-z0-9][\w.-]*"
WHERE = re.compile(rf"({PART}(?:/{PART}){{0,2}})(?:@([\w./-]+))?(?::(.+))?")
COMMIT = re.compile("[0-9a-f]{40}")
PACKED = (".gz", ".bz2", ".xz", ".zst")


class _Streamed(NamedTuple):
    """What a loader of `datasets` reads as one of our kinds: files with these ends, unless options
    differ. Plain .json is not among them, since it may be one object of columns."""

    kind: str
    ends: tuple[str, ...]
    options: dict[str, Any]


STREAMED = {
    "parquet": _Streamed("parquet", (".parquet",), {"filters": None}),
    "json": _Streamed(
        "jsonl",
        (
            *(f"{end}{packed}" for end in (".jsonl", ".ndjson") for packed in ("", *PACKED)),
            *(f".json{packed}" for packed in PACKED),
        ),
        {"field": None, "encoding": "utf-8"},
    ),
    "text": _Streamed(
        "lines",
        tuple(f".txt{packed}" for packed in ("", *PACKED)),
        {"sample_by": "line", "keep_linebreaks": False, "encoding": "utf-8"},
    ),
}


@dataclass(frozen=True)
class HubSource:
    """`where` is NAME, ORG/NAME or ORG/NAME/CONFIG, then @REVISION and :SPLIT if given."""

    name: str
    where: str
    policies: Policies

    def __post_init__(self) -> None:
        if not WHERE.fullmatch(self.where):
            raise UserError(
                f"data source '{self.name}': no such folder, and not the name of a dataset; "
                f"allowed: hf:FOLDER, hf:NAME, hf:ORG/NAME, hf:ORG/NAME/CONFIG, then @REVISION, "
                f"then :SPLIT"
            )

    @property
    def identity(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self._parts[0]}{revision}:{self.split}"

    @property
    def revision(self) -> str | None:
        return self._parts[1]

    @property
    def split(self) -> str:
        return self._parts[2] or DEFAULT_SPLIT

    @property
    def size(self) -> int:
        return self._content.size

    def fingerprint(self) -> str:
        """A hash of the commit; the Hub is not asked if the revision is one."""
        return hashlib.sha256(f"{self.identity} {self.commit}".encode()).hexdigest()

    @cached_property
    def commit(self) -> str:
        """What was the newest commit of the revision when it was first asked for, or, if
        HF_HUB_OFFLINE says not to ask, when the Hub was last asked on this machine."""
        known = _pinned(self.revision) or _last_known(self._dataset[0], self.revision)
        return known or str(self._builder.hash)

    def __getstate__(self) -> dict[str, Any]:
        """In another process it is of the same commit, wherever the branch is by then."""
        fields = {"name": self.name, "where": self.where, "policies": self.policies}
        return {**fields, "commit": self.commit}

    def units(self, target_bytes: int) -> tuple[Unit, ...]:
        return self._content.units(target_bytes)

    def rows(self, columns: Sequence[Column], unit: Unit | None = None) -> Iterator[Row]:
        return self._content.rows(columns, unit)

    @property
    def _parts(self) -> tuple[str, str | None, str | None]:
        match = WHERE.fullmatch(self.where)
        assert match
        return match[1], match[2], match[3]

    @property
    def _dataset(self) -> tuple[str, str | None]:
        """The name of the dataset and of its configuration."""
        parts = self._parts[0].split("/")
        return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None

    @cached_property
    def _content(self) -> FileSource | Table:
        return self._streamed() or Table(self._load(), self.name, self.policies)

    def _streamed(self) -> FileSource | None:
        """The files of the split, if all are of a kind that is read as a stream."""
        config = self._builder.config
        streamed = STREAMED.get(self._builder.name)
        files = {str(split): list(each) for split, each in (config.data_files or {}).items()}
        if not streamed or not files or not re.fullmatch(r"[\w.-]+", self.split):
            return None
        if self.split not in files:
            raise no_split(self.name, self.split, list(files))
        names = files[self.split]
        plain = all(is_url(name) and name.endswith(streamed.ends) for name in names)
        if not plain or any(
            getattr(config, option, value) != value for option, value in streamed.options.items()
        ):
            return None
        find = partial(look_up, self.name, [Place(name) for name in names])
        return FileSource(self.name, streamed.kind, self.identity, self.policies, find)

    @cached_property
    def _builder(self) -> Any:
        import datasets

        known = _pinned(self.__dict__.get("commit"))  # if another process has sent it
        return self._ask(datasets.load_dataset_builder, revision=known or self.revision)

    def stream(self) -> Any:
        """The split as a `datasets.IterableDataset`, of which nothing is kept on the disk."""
        return self._load(streaming=True)

    def _load(self, **options: Any) -> Any:
        import datasets

        revision = _pinned(self.commit) or self.revision  # the branch may have moved since
        return self._ask(datasets.load_dataset, revision=revision, split=self.split, **options)

    def _ask(self, load: Any, **options: Any) -> Any:
        from datasets.exceptions import DatasetsError

        name, config = self._dataset
        try:
            return load(name, config, **options)
        except (ValueError, OSError, DatasetsError) as error:
            revision = f", revision {self.revision}" if self.revision else ""
            raise UserError(
                f"data source '{self.name}': the Hub gave no dataset '{name}', configuration "
                f"{config or 'default'}, split {self.split}{revision} ({error}). Check the names "
                f"and the connection (HF_HUB_OFFLINE=1 uses what was downloaded before); with "
                f"@COMMIT after the name, a token store that was made is used without asking"
            ) from None


def _pinned(revision: str | None) -> str | None:
    """The revision, if it is a commit."""
    return revision if COMMIT.fullmatch(revision or "") else None


def _last_known(dataset: str, revision: str | None) -> str | None:
    """The commit that `huggingface_hub` has noted for a branch, if it may not ask."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if not constants.HF_HUB_OFFLINE:
        return None
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=dataset, repo_type="dataset"))
    noted = folder / "refs" / (revision or "main")
    return noted.read_text().strip() if noted.is_file() else None
