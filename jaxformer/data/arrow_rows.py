"""Rows of tables: Parquet files, and datasets that `datasets` keeps as Arrow files."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxformer.data.object_rows import splits
from jaxformer.data.rows import Column, Policies, Row, holds, row_of, wrong_column, wrong_value
from jaxformer.data.units import FilePart, share
from jaxformer.data.unpacking import open_stored
from jaxformer.errors import UserError
from jaxformer.file_formats import HEAD, binary_format_of, compression_of
from jaxformer.storage import READ_AHEAD, Place

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROWS_AT_ONCE = 1024
BYTES_AT_ONCE = 2**24
PARQUET = (b"PAR1", b"PARE")
Path = tuple[str, ...]  # of names: a column, and fields inside of it


class _Rows(NamedTuple):
    """A range of rows: how many are before it and in it, and what `done` grows to."""

    before: int
    inside: int
    size: int


def parquet_rows(file: FilePart, columns: Sequence[Column], policies: Policies) -> Iterator[Row]:
    """One row per row; a file is cut at its row groups: group g of n is in part g·parts // n."""
    import pyarrow as pa

    try:
        with _open_parquet(file.place) as parquet:
            place = str(file.place)
            paths = _find_columns(parquet.schema_arrow, columns, policies, place)
            metadata = parquet.metadata
            counts = [metadata.row_group(each).num_rows for each in range(metadata.num_row_groups)]
            groups = [
                group
                for group in range(len(counts))
                if group * file.parts // len(counts) == file.part
            ]
            if not groups:
                return
            before, count = sum(counts[: groups[0]]), sum(counts[group] for group in groups)
            batches = parquet.iter_batches(
                batch_size=ROWS_AT_ONCE,
                row_groups=groups,
                columns=[".".join(path) for path in paths if path is not None],
            )
            rows = _Rows(before, count, file.size)
            yield from _rows_of(batches, paths, columns, policies, place, rows)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise UserError(
            f"{file.place}: truncated or damaged parquet ({str(error).splitlines()[0]}); "
            f"copy the file again, or leave it out of the pattern"
        ) from None


def hf_rows(
    dataset: Any,
    columns: Sequence[Column],
    policies: Policies,
    place: str,
    part: int = 0,
    parts: int = 1,
) -> Iterator[Row]:
    """One row per row of a part of a `datasets.Dataset`; `done` counts rows."""
    paths = _find_columns(dataset.features.arrow_schema, columns, policies, place)
    names = list(dict.fromkeys(path[0] for path in paths if path is not None))
    begin, end = (share(dataset.num_rows, edge, parts) for edge in (part, part + 1))
    selected = dataset.select_columns(names).with_format("arrow")
    if parts > 1:
        selected = selected.select(range(begin, end))
    batches = (
        batch for table in selected.iter(batch_size=ROWS_AT_ONCE) for batch in table.to_batches()
    )
    rows = _Rows(begin, end - begin, end - begin)
    return _rows_of(batches, paths, columns, policies, place, rows)


@contextmanager
def _open_parquet(place: Place) -> Iterator["pq.ParquetFile"]:
    """Raises UserError where it is another file, or one that is only given from its beginning."""
    import pyarrow.parquet as pq

    with open_stored(place) as stream:
        head = stream.peek(HEAD)[:HEAD]
        if head and not head.startswith(PARQUET):
            packed = compression_of(head)
            kind = f"compressed by {packed}" if packed else binary_format_of(head) or "another file"
            raise UserError(
                f"{place} is {kind}, not Parquet; read text as text:GLOB, lines of JSON as "
                f"jsonl:GLOB"
            )
        if not stream.seekable():
            raise UserError(
                f"{place}: its web server gives no parts of a file, which Parquet needs; download "
                f"the file, or serve it from a bucket"
            )
        source = stream if place.is_remote else str(place.path)
        # Otherwise whole columns of a row group are read before its first row.
        with pq.ParquetFile(source, buffer_size=READ_AHEAD, pre_buffer=False) as parquet:
            yield parquet


def _rows_of(
    batches: Iterable["pa.RecordBatch"],
    paths: Sequence[Path | None],
    columns: Sequence[Column],
    policies: Policies,
    place: str,
    rows: _Rows,
) -> Iterator[Row]:
    row = 0
    for batch in batches:
        # Long texts are taken out of a batch a few at a time.
        count = max(1, len(batch) * BYTES_AT_ONCE // max(batch.nbytes, BYTES_AT_ONCE))
        for start in range(0, len(batch), count):
            part = batch.slice(start, count)
            arrays = [
                [None] * part.num_rows
                if path is None
                else _values(_texts_as_bytes(_column(part, path)))
                for path in paths
            ]
            for values in zip(*arrays, strict=True):
                row += 1
                done = rows.size * row // rows.inside
                yield _row(values, columns, policies, f"{place}, row {rows.before + row}", done)


def _row(
    values: tuple[Any, ...], columns: Sequence[Column], policies: Policies, place: str, done: int
) -> Row:
    missing = [
        column
        for column, value in zip(columns, values, strict=True)
        if value is None and column.holds is not None
    ]
    if not missing:
        return row_of(tuple(map(_without_nulls, values)), place, done, policies)
    if policies.missing_text == "skip":
        return Row(None, place, done, "missing")
    raise wrong_value(place, missing[0], None)


def _without_nulls(value: Any) -> Any:
    """Drop null fields of structures: a table has every field in every row."""
    match value:
        case list():
            return [_without_nulls(item) for item in value]
        case dict():
            return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _column(batch: "pa.RecordBatch", path: Path) -> "pa.Array":
    """The values of a column or of a field inside of it, null where a structure around it is."""
    import pyarrow.compute as pc

    array = batch.column(path[0])
    for name in path[1:]:
        array = pc.struct_field(array, [name])
    return array


def _values(array: "pa.Array") -> list[Any]:
    """The values, without a copy of a long text."""
    import pyarrow as pa

    is_text = pa.types.is_large_binary(array.type) and not array.null_count
    if len(array) == 1 and is_text and array.nbytes > BYTES_AT_ONCE:
        _, offsets, data = array.buffers()  # a scalar would be a copy
        begin, end = np.frombuffer(offsets, "<i8")[array.offset : array.offset + 2]
        return [memoryview(data)[begin:end]]
    return array.to_pylist()


def _texts_as_bytes(array: "pa.Array") -> "pa.Array":
    """Cast texts, also in lists and structures, to bytes: Arrow does not check their UTF-8."""
    import pyarrow as pa

    def of(kind: "pa.DataType") -> "pa.DataType":
        if _is_text(kind):
            return pa.large_binary()
        if pa.types.is_list(kind):
            return pa.list_(kind.value_field.with_type(of(kind.value_type)))
        if pa.types.is_large_list(kind):
            return pa.large_list(kind.value_field.with_type(of(kind.value_type)))
        if pa.types.is_struct(kind):
            fields = [kind.field(index) for index in range(kind.num_fields)]
            return pa.struct([field.with_type(of(field.type)) for field in fields])
        return kind

    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array.cast(of(array.type))


def _find_columns(
    schema: "pa.Schema", columns: Sequence[Column], policies: Policies, place: str
) -> list[Path | None]:
    """Where the columns are; None for one that is optional and not there."""
    import pyarrow as pa

    fields = {field.name: field.type for field in schema}
    paths: list[Path | None] = []
    for column in columns:
        found = _find(fields, column.name)
        if column.holds is None:
            paths.append(found)
            continue
        if found is None:
            raise _not_there(fields, column, column.name, place)
        paths.append(found)
        kind = _type_at(fields, found)
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_null(value) and policies.missing_text == "skip":
            continue
        is_list = pa.types.is_list(value) or pa.types.is_large_list(value)
        if not (_is_text(value) if column.holds is str else is_list):
            raise UserError(
                f"{place}: column '{column.name}' holds {kind}, not {holds(column)}; choose "
                f"{column.key}"
            )
    return paths


def _find(fields: dict[str, "pa.DataType"], column: str) -> Path | None:
    if column in fields:
        return (column,)
    for name, rest in splits(column):
        if name in fields:
            inside = _find(_fields_of(fields[name]), rest)
            return None if inside is None else (name, *inside)
    return None


def _type_at(fields: dict[str, "pa.DataType"], path: Path) -> "pa.DataType":
    kind = fields[path[0]]
    for name in path[1:]:
        kind = kind.field(name).type
    return kind


def _fields_of(kind: "pa.DataType") -> dict[str, "pa.DataType"]:
    import pyarrow as pa

    if not pa.types.is_struct(kind):
        return {}
    return {kind.field(index).name: kind.field(index).type for index in range(kind.num_fields)}


def _not_there(
    fields: dict[str, "pa.DataType"], column: Column, sought: str, place: str, inside: str = ""
) -> UserError:
    """Names the columns at the level at which a column is not found."""
    for name, rest in splits(sought):
        if name in fields:
            level = f"{inside}.{name}".lstrip(".")
            if within := _fields_of(fields[name]):
                return _not_there(within, column, rest, place, level)
            return UserError(
                f"{place}: column '{level}' holds {fields[name]}, not an object with a field "
                f"'{rest}'; choose {column.key}"
            )
    return wrong_column(place, column.key, sought, fields, inside)


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    types = pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
