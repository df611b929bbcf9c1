"""Pictures and recordings in tables that `datasets` reads as streams: Parquet files, webdatasets,
and the Hub."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from jaxformer.data.finding import Found, absolute_pattern, find_files
from jaxformer.data.hub import HubSource
from jaxformer.data.media.records import Labels, Record, Wanted, no_column, target_of
from jaxformer.data.object_rows import splits
from jaxformer.data.rows import BadRow, named_kind
from jaxformer.data.saved_datasets import SavedSource
from jaxformer.errors import UserError
from jaxformer.storage import Place

Stream = Any  # a `datasets.IterableDataset` or `datasets.Dataset`
LARGEST_FILE = 1 << 30


class Table:
    """The rows of a stream: `place` names it in messages, `paths` are files that it may name in
    place of bytes.

    Raises:
        UserError: a column is missing, or holds something else.
    """

    def __init__(self, stream: Stream, place: str, wanted: Wanted, *, paths: bool) -> None:
        import datasets

        self._place, self._wanted, self._paths = place, wanted, paths
        features = stream.features
        if features is None:
            raise UserError(
                f"{place}: `datasets` cannot tell its columns; save the {wanted.noun}s as Parquet, "
                f"with the columns '{wanted.column}' and '{wanted.target}'"
            )
        if _feature(features, wanted.column) is None:
            raise no_column(place, wanted, "column", _shown(features))
        target = _feature(features, wanted.target)
        if target is None:
            raise no_column(place, wanted, wanted.key, _shown(features))
        self.labels = _labels_of(target, place, wanted)
        columns = dict.fromkeys(
            _column_of(features, each) for each in (wanted.column, wanted.target)
        )
        stream = stream.select_columns([*columns, *(["__key__"] if "__key__" in features else [])])
        feature = _feature(features, wanted.column)
        if isinstance(feature, datasets.Image | datasets.Audio):
            # As a struct, nothing decodes it, or asks for packages that could.
            content = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
            stream = stream.cast_column(wanted.column, content)
        self._stream = stream

    def records(self, limit: int | None, done: int) -> Iterator[Record]:
        """The rows, numbered from 1; `done` bytes have been read before."""
        wanted = self._wanted
        for number, row in enumerate(_rows(self._stream, self._place), start=1):
            key = row.get("__key__")
            place = f"{self._place}, " + (f"row {number}" if key is None else f"sample '{key}'")
            try:
                content = self._content(_value(row, wanted.column), place)
                done += len(content)
                value = _value(row, wanted.target)
                target = target_of(value, self.labels, limit, place, wanted.target)
            except BadRow as fault:
                yield Record(b"", 0, place, done, fault)
                continue
            yield Record(content, target, place, done)

    def _content(self, value: Any, place: str) -> bytes:
        if isinstance(value, dict) and value.get("bytes") is not None:
            value = value["bytes"]
        path = value.get("path") if isinstance(value, dict) else None
        if path and self._paths:
            return _read(path, place)
        if isinstance(value, bytes):
            return value
        what = f"the path {path} without a {self._wanted.noun}" if path else named_kind(value)
        raise BadRow(
            f"{place}: column '{self._wanted.column}' is {what}; allowed: the bytes of a "
            f"{self._wanted.noun}'s file, as `datasets` writes them. Fix or remove the "
            f"row, or skip all such rows with data.bad_rows=skip"
        )


class TableFiles:
    """Parquet files or webdatasets: the table of each is opened when its turn comes.

    Raises:
        UserError: no file is found; raised by all methods: a file is damaged, or of other columns.
    """

    def __init__(self, name: str, kind: str, where: str, wanted: Wanted) -> None:
        self.name, self._kind, self._where, self._wanted = name, kind, where, wanted
        self.identity = f"{kind}:{absolute_pattern(where)}"
        self._found = self._find()

    def _find(self) -> Found:
        return find_files(self.name, self._where)

    @property
    def size(self) -> int:
        return sum(stored.bytes for stored in self._found.values())

    @property
    def traces(self) -> set[str]:
        return {self.identity, *map(str, self._found)}

    def fingerprint(self) -> str:
        rows = [[str(place), each.bytes, each.version] for place, each in self._find().items()]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    @cached_property
    def labels(self) -> Labels:
        """Those of the first file."""
        return self._table(next(iter(self._found))).labels

    def records(self, limit: int | None) -> Iterator[Record]:
        before = 0
        for place, stored in self._found.items():
            table = self._table(place)
            if table.labels != self.labels:
                raise UserError(
                    f"{place}: its labels are {_described(table.labels)}, and those of "
                    f"{next(iter(self._found))} are {_described(self.labels)}; give one kind of "
                    f"labels in one source"
                )
            yield from table.records(limit, before)
            before += stored.bytes

    def _table(self, place: Place) -> Table:
        import datasets

        files = {"train": [str(place)]}
        with _damage_told(str(place)):
            stream = datasets.load_dataset(
                self._kind, data_files=files, split="train", streaming=True
            )
        return Table(stream, str(place), self._wanted, paths=False)


class HubTable:
    """A split of a dataset of the Hub, or that `datasets` has saved to a folder.

    Raises:
        UserError: raised by all methods: there is no such dataset, or it has other columns.
    """

    def __init__(self, source: HubSource | SavedSource, wanted: Wanted) -> None:
        self._source, self._wanted = source, wanted
        self.name, self.identity = source.name, source.identity

    @cached_property
    def _stream(self) -> Stream:
        return self._source.stream()

    @cached_property
    def _table(self) -> Table:
        return Table(self._stream, self.name, self._wanted, paths=True)

    @property
    def size(self) -> int:
        """The bytes that are told; 0 if none are."""
        info = self._stream.info
        return int(info.download_size or info.dataset_size or 0)

    @property
    def labels(self) -> Labels:
        return self._table.labels

    @property
    def traces(self) -> set[str]:
        return {self.identity}

    def fingerprint(self) -> str:
        return self._source.fingerprint()

    def records(self, limit: int | None) -> Iterator[Record]:
        return self._table.records(limit, 0)


@contextmanager
def _damage_told(place: str) -> Iterator[None]:
    """Raises UserError where `datasets` finds a file that is damaged."""
    import datasets
    import pyarrow as pa
    from datasets.exceptions import DatasetsError

    said = datasets.utils.logging.get_verbosity()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)  # we say it once
    try:
        yield
    except (pa.ArrowException, DatasetsError, tarfile.TarError, ValueError, OSError) as error:
        why = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{place}: truncated, damaged or of another kind ({why[0]}); copy the file again, or "
            f"leave it out of the pattern"
        ) from None
    finally:
        datasets.utils.logging.set_verbosity(said)


def _rows(stream: Stream, place: str) -> Iterator[dict]:
    with _damage_told(place):
        yield from stream


def _read(path: str, place: str) -> bytes:
    """A file that a row of the Hub names."""
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            return bytes(file.read(LARGEST_FILE))
    except OSError as error:
        raise UserError(f"{place}: {path} cannot be read ({error}); try again") from None


def _column_of(features: Any, name: str) -> str:
    """The column that a name is, or is inside of."""
    return name if name in features else next(each for each, _ in splits(name) if each in features)


def _feature(features: Any, name: str) -> Any:
    """What a column, or a field inside of one, holds; None if there is none."""
    if name in features:
        return features[name]
    for outer, inner in splits(name):
        if isinstance(features.get(outer), dict):
            return _feature(features[outer], inner)
    return None


def _value(row: Any, name: str) -> Any:
    if not isinstance(row, dict) or name in row:
        return row[name] if isinstance(row, dict) else None
    for outer, inner in splits(name):
        if outer in row:
            return _value(row[outer], inner)
    return None


def _shown(features: Any) -> list[str]:
    """The columns, with the fields of those that have some, but for files' own."""
    names = []
    for name, feature in features.items():
        inside = feature if isinstance(feature, dict) and set(feature) != {"bytes", "path"} else {}
        names += [f"{name}.{field}" for field in inside] or [name]
    return [name for name in names if not name.startswith("__")]


def _labels_of(feature: Any, place: str, wanted: Wanted) -> Labels:
    import datasets

    dtype = getattr(feature, "dtype", "") if isinstance(feature, datasets.Value) else ""
    if wanted.key == "text" and "string" in dtype:
        return Labels("texts")
    if wanted.key == "label" and isinstance(feature, datasets.ClassLabel):
        return Labels("listed", tuple(feature.names))
    if wanted.key == "label" and "int" in dtype:
        return Labels("numbers")
    if wanted.key == "label" and "string" in dtype:
        return Labels("names")
    allowed = "text" if wanted.key == "text" else "whole numbers, or names of classes"
    raise UserError(
        f"{place}: column '{wanted.target}' holds {dtype or type(feature).__name__}, not one "
        f"{'class' if wanted.key == 'label' else 'text'}; allowed: {allowed}. Choose "
        f"data.{wanted.section}.{wanted.key}"
    )


def _described(labels: Labels) -> str:
    words = {"listed": "numbers of a list of classes"}
    return words.get(labels.kind, labels.kind) + (
        f" ({', '.join(labels.names)})" if labels.names else ""
    )
