"""Rows read from files, one reader a format, each naming file and row of what is wrong.

jsonl and parquet are read directly, and only hf: goes through `datasets`, which would keep a second
copy of the text, guesses types (a column of dates stops being text) and hides row numbers.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from jaxformer.schema import UserError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 1024
Readable = IO[bytes] | gzip.GzipFile


class Column(NamedTuple):
    """A column to read, and what its values are: texts, or lists, or (None) anything, in a column
    that may be missing."""

    name: str
    holds: type[str] | type[list] | None


class Row(NamedTuple):
    """A value of every column asked for, or None where the policy skipped the row; `place` names
    the row, `done` counts what of the source is read."""

    values: tuple[Any, ...] | None
    place: str
    done: int


def decode_utf8(value: Any, policy: str, place: str) -> Any:
    """The text of bytes, or a value with all texts in it so decoded, or None to skip it.

    An escaped lone surrogate is legal JSON and no text: it has no UTF-8 form.

    Raises:
        UserError: something is not UTF-8 and the policy (`data.invalid_utf8`) is `error`.
    """
    try:
        return _decoded(value, "strict")
    except UnicodeDecodeError as error:
        if policy == "skip":
            return None
        if policy == "replace":
            return _decoded(value, "replace")
        raise UserError(
            f"{place}: byte 0x{error.object[error.start]:02x} at offset {error.start} is not "
            f"UTF-8. data.invalid_utf8 is 'error'; allowed: error, replace (with U+FFFD), "
            f"skip (the document)"
        ) from None


def _decoded(value: Any, errors: str) -> Any:
    match value:
        case bytes():
            return value.decode("utf-8", errors)
        case str():
            return value.encode("utf-8", "surrogatepass").decode("utf-8", errors)
        case list() | tuple():
            return type(value)(_decoded(item, errors) for item in value)
        case dict():
            return {_decoded(key, errors): _decoded(item, errors) for key, item in value.items()}
    return value


def _open(file: Path) -> IO[bytes]:
    try:
        return file.open("rb")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None


def text_rows(files: Sequence[Path], invalid_utf8: str) -> Iterator[Row]:
    """A row a file, its value the whole text; `done` counts bytes."""
    done = 0
    for file in files:
        with _open(file) as raw:
            data = raw.read()
        done += len(data)
        yield Row(decode_utf8((data,), invalid_utf8, str(file)), str(file), done)


def jsonl_rows(
    files: Sequence[Path], columns: Sequence[Column], invalid_utf8: str
) -> Iterator[Row]:
    """A row a line, from plain or gzip files; `done` counts bytes of the files as they lie."""
    before = 0
    for file in files:
        with _open(file) as raw, _unpacked(raw, file) as lines:
            for number, line in _numbered_lines(lines, file):
                if line.strip():
                    place = f"{file}, line {number}"
                    values = _json_values(line, columns, invalid_utf8, place)
                    yield Row(values, place, before + raw.tell())
        before += file.stat().st_size


def _unpacked(raw: IO[bytes], file: Path) -> AbstractContextManager[Readable]:
    return gzip.GzipFile(fileobj=raw) if file.suffix == ".gz" else nullcontext(raw)


def _numbered_lines(lines: Readable, file: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    while True:
        try:
            line = lines.readline()
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(
                f"{file}: truncated or damaged gzip after line {number} ({error}); "
                f"copy the file again, or leave it out of the pattern"
            ) from None
        if not line:
            return
        number += 1
        yield number, line


def _json_values(
    line: bytes, columns: Sequence[Column], invalid_utf8: str, place: str
) -> tuple[Any, ...] | None:
    decoded = decode_utf8(line, invalid_utf8, place)
    if decoded is None:
        return None
    try:
        row = json.loads(decoded)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON: {error.msg} at character {error.pos}") from None
    for column in columns:
        if not isinstance(row, dict):
            raise UserError(
                f"{place}: {named_kind(row)}, not an object with a column '{column.name}'"
            )
        if column.holds is None:
            continue
        if column.name not in row:
            raise _wrong_column(place, column.name, row)
        if not isinstance(row[column.name], column.holds):
            raise _wrong_value(place, column, row[column.name])
    return decode_utf8(tuple(row.get(column.name) for column in columns), invalid_utf8, place)


def parquet_rows(
    files: Sequence[Path], columns: Sequence[Column], invalid_utf8: str
) -> Iterator[Row]:
    """A row of the files a row; `done` counts bytes of the files, by the rows read of each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    before = 0
    for file in files:
        try:
            parquet = pq.ParquetFile(file)
            names = _check_arrow_columns(parquet.schema_arrow, columns, str(file))
            size, rows = file.stat().st_size, max(parquet.metadata.num_rows, 1)
            batches = parquet.iter_batches(batch_size=ROWS_AT_ONCE, columns=names)
            for row in _arrow_rows(batches, columns, invalid_utf8, str(file)):
                yield row._replace(done=before + size * row.done // rows)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{file}: truncated or damaged parquet ({str(error).splitlines()[0]}); "
                f"copy the file again, or leave it out of the pattern"
            ) from None
        before += size


def hf_rows(
    dataset: Any, columns: Sequence[Column], invalid_utf8: str, place: str
) -> Iterator[Row]:
    """A row of a `datasets.Dataset` a row; `done` counts rows."""
    names = _check_arrow_columns(dataset.features.arrow_schema, columns, place)
    selected = dataset.select_columns(names).with_format("arrow")
    batches = (
        batch for table in selected.iter(batch_size=ROWS_AT_ONCE) for batch in table.to_batches()
    )
    return _arrow_rows(batches, columns, invalid_utf8, place)


def _arrow_rows(
    batches: Iterable["pa.RecordBatch"],
    columns: Sequence[Column],
    invalid_utf8: str,
    place: str,
) -> Iterator[Row]:
    """Numbers the rows from 1, which is also what is `done`."""
    row = 0
    for batch in batches:
        arrays = [
            _texts_as_bytes(batch.column(column.name)).to_pylist()
            if column.name in batch.schema.names
            else [None] * batch.num_rows
            for column in columns
        ]
        for values in zip(*arrays, strict=True):
            row += 1
            where = f"{place}, row {row}"
            for column, value in zip(columns, values, strict=True):
                if value is None and column.holds is not None:
                    raise _wrong_value(where, column, None)
            present = tuple(_without_nulls(value) for value in values)
            yield Row(decode_utf8(present, invalid_utf8, where), where, row)


def _without_nulls(value: Any) -> Any:
    """Without the fields of structures that are null: a table has every field in every row."""
    match value:
        case list():
            return [_without_nulls(item) for item in value]
        case dict():
            return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _texts_as_bytes(array: "pa.Array") -> "pa.Array":
    """Texts, also those in lists and structures, as bytes: Arrow does not check them."""
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


def _check_arrow_columns(schema: "pa.Schema", columns: Sequence[Column], place: str) -> list[str]:
    """The names of those that are there; the others may be missing."""
    import pyarrow as pa

    for column in columns:
        if column.holds is None:
            continue
        if column.name not in schema.names:
            raise _wrong_column(place, column.name, schema.names)
        kind = schema.field(column.name).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        is_list = pa.types.is_list(value) or pa.types.is_large_list(value)
        if not (_is_text(value) if column.holds is str else is_list):
            raise UserError(
                f"{place}: column '{column.name}' holds {kind}, not {_holds(column)}; choose "
                f"data.column"
            )
    return [column.name for column in columns if column.name in schema.names]


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    types = pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _wrong_column(place: str, column: str, columns: Any) -> UserError:
    names = [str(name) for name in columns]
    return UserError(
        f"{place}: no column '{column}'; columns: {', '.join(names)}. Set data.column."
        f"{did_you_mean(column, names)}"
    )


def _wrong_value(place: str, column: Column, value: object) -> UserError:
    return UserError(
        f"{place}: column '{column.name}' is {named_kind(value)}, not {_holds(column)}; mend or "
        f"remove the row"
    )


def _holds(column: Column) -> str:
    return "text" if column.holds is str else "a list"


def named_kind(value: object) -> str:
    """What a value of JSON is, in words."""
    if value is None:
        return "null"
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "a string")
