"""Reads rows from files; errors name the file and the row. JSON has its own module.

Only hf: goes through `datasets`, which keeps a second copy of the text, guesses types (a column of
dates stops being text) and hides row numbers; jsonl and parquet are read directly.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxformer.data.long_text import BLOCK, LongText
from jaxformer.data.unpacking import open_text
from jaxformer.errors import UserError, did_you_mean
from jaxformer.file_formats import HEAD, binary_format_of, compression_of

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 1024
BYTES_AT_ONCE = 2**24
PARQUET = (b"PAR1", b"PARE")
SURROGATE = re.compile("[\ud800-\udfff]")


class Policies(NamedTuple):
    """`data.invalid_utf8` and `data.missing_text`: what happens to a row without valid text."""

    invalid_utf8: str = "error"
    missing_text: str = "error"


class Column(NamedTuple):
    """A column to read, and what its values are: texts, lists, or (None) anything, in a column that
    may be missing."""

    name: str
    holds: type[str] | type[list] | None


class Row(NamedTuple):
    """Values of the requested columns, or None where a policy skipped the row (`is_missing` says
    which); `place` names the row, `done` counts how much of the source has been read."""

    values: tuple[Any, ...] | None
    place: str
    done: int
    is_missing: bool = False


def _decoded(value: Any, errors: str) -> Any:
    match value:
        case bytes():
            return value.decode("utf-8", errors)
        case str():
            if value.isascii() or not SURROGATE.search(value):
                return value  # not a copy: it may be long
            return value.encode("utf-8", "surrogatepass").decode("utf-8", errors)
        case list() | tuple():
            return type(value)(_decoded(item, errors) for item in value)
        case dict():
            return {_decoded(key, errors): _decoded(item, errors) for key, item in value.items()}
    return value


def decode_utf8(
    value: Any, policy: str, place: str, decode: Callable[[Any, str], Any] = _decoded
) -> Any:
    """Decode bytes, or all texts in a value; None means to skip it.

    An escaped lone surrogate is legal JSON but not text: it has no UTF-8 form.

    Raises:
        UserError: something is not UTF-8 and the policy (`data.invalid_utf8`) is `error`.
    """
    try:
        return decode(value, "strict")
    except UnicodeDecodeError as error:
        if policy == "skip":
            return None
        if policy == "replace":
            return decode(value, "replace")
        raise UserError(
            f"{place}: byte 0x{error.object[error.start]:02x} at offset {error.start} is not "
            f"UTF-8. data.invalid_utf8 is 'error'; allowed: error, replace (with U+FFFD), "
            f"skip (the document)"
        ) from None


def text_rows(files: Sequence[Path], policies: Policies) -> Iterator[Row]:
    """One row per file: the whole text, as a `LongText` if longer than a block; `done` counts bytes
    of the stored files."""
    done = 0
    for file in files:
        with open_text(file) as opened:
            data = opened.read()
        done += file.stat().st_size
        decode = LongText if len(data) > BLOCK else _decoded
        text = decode_utf8(data, policies.invalid_utf8, str(file), decode)
        del data  # so that it is not held twice while the text is consumed
        yield Row(None if text is None else (text,), str(file), done)


def parquet_rows(
    files: Sequence[Path], columns: Sequence[Column], policies: Policies
) -> Iterator[Row]:
    """One row per row of the files; `done` counts bytes, by the rows read of each file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    before = 0
    for file in files:
        try:
            _check_parquet(file)
            parquet = pq.ParquetFile(file)
            names = _check_arrow_columns(parquet.schema_arrow, columns, policies, str(file))
            size, rows = file.stat().st_size, max(parquet.metadata.num_rows, 1)
            batches = parquet.iter_batches(batch_size=ROWS_AT_ONCE, columns=names)
            for row in _arrow_rows(batches, columns, policies, str(file)):
                yield row._replace(done=before + size * row.done // rows)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{file}: truncated or damaged parquet ({str(error).splitlines()[0]}); "
                f"copy the file again, or leave it out of the pattern"
            ) from None
        before += size


def hf_rows(
    dataset: Any, columns: Sequence[Column], policies: Policies, place: str
) -> Iterator[Row]:
    """One row per row of a `datasets.Dataset`; `done` counts rows."""
    names = _check_arrow_columns(dataset.features.arrow_schema, columns, policies, place)
    selected = dataset.select_columns(names).with_format("arrow")
    batches = (
        batch for table in selected.iter(batch_size=ROWS_AT_ONCE) for batch in table.to_batches()
    )
    return _arrow_rows(batches, columns, policies, place)


def _arrow_rows(
    batches: Iterable["pa.RecordBatch"],
    columns: Sequence[Column],
    policies: Policies,
    place: str,
) -> Iterator[Row]:
    """Rows numbered from 1; the number is also what is `done`."""
    row = 0
    for batch in batches:
        # Long texts are taken out of a batch a few at a time.
        count = max(1, len(batch) * BYTES_AT_ONCE // max(batch.nbytes, BYTES_AT_ONCE))
        for start in range(0, len(batch), count):
            part = batch.slice(start, count)
            arrays = [
                _texts_as_bytes(part.column(column.name)).to_pylist()
                if column.name in part.schema.names
                else [None] * part.num_rows
                for column in columns
            ]
            for values in zip(*arrays, strict=True):
                row += 1
                yield _row_of(values, columns, policies, f"{place}, row {row}", row)


def _row_of(
    values: tuple[Any, ...], columns: Sequence[Column], policies: Policies, place: str, done: int
) -> Row:
    missing = [
        column
        for column, value in zip(columns, values, strict=True)
        if value is None and column.holds is not None
    ]
    if not missing:
        present = tuple(_without_nulls(value) for value in values)
        return Row(decode_utf8(present, policies.invalid_utf8, place), place, done)
    if policies.missing_text == "skip":
        return Row(None, place, done, is_missing=True)
    raise wrong_value(place, missing[0], None)


def _without_nulls(value: Any) -> Any:
    """Drop null fields of structures: a table has every field in every row."""
    match value:
        case list():
            return [_without_nulls(item) for item in value]
        case dict():
            return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


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


def _check_parquet(file: Path) -> None:
    with file.open("rb") as stream:
        head = stream.read(HEAD)
    if head and not head.startswith(PARQUET):
        packed = compression_of(head)
        kind = f"compressed by {packed}" if packed else binary_format_of(head) or "another file"
        raise UserError(
            f"{file} is {kind}, not Parquet; read text as text:GLOB, lines of JSON as jsonl:GLOB"
        )


def _check_arrow_columns(
    schema: "pa.Schema", columns: Sequence[Column], policies: Policies, place: str
) -> list[str]:
    """Check the columns; returns the names of those that exist, and the others are optional."""
    import pyarrow as pa

    for column in columns:
        if column.holds is None:
            continue
        if column.name not in schema.names:
            raise wrong_column(place, column.name, schema.names)
        kind = schema.field(column.name).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_null(value) and policies.missing_text == "skip":
            continue
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


def wrong_column(place: str, column: str, columns: Any) -> UserError:
    names = [str(name) for name in columns]
    return UserError(
        f"{place}: no column '{column}'; columns: {', '.join(names)}. Set data.column to one of "
        f"them.{did_you_mean(column, names)}"
    )


def wrong_value(place: str, column: Column, value: object) -> UserError:
    skip = ", or skip all such rows with data.missing_text=skip" if value is None else ""
    return UserError(
        f"{place}: column '{column.name}' is {named_kind(value)}, not {_holds(column)}; fix or "
        f"remove the row{skip}"
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
