"""Documents read from files, one reader a format, each naming file and row of what is wrong.

jsonl and parquet are read directly, and only hf: goes through `datasets`, which would keep a second
copy of the text, guesses types (a column of dates stops being text) and hides row numbers.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from jaxformer.schema import UserError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 1024
Readable = IO[bytes] | gzip.GzipFile


class Document(NamedTuple):
    """A text, or None where the policy skipped it; `done` counts what of the source is read."""

    text: str | None
    done: int


def decode_utf8(data: bytes, policy: str, place: str) -> str | None:
    """The text of `data`, or None to skip it.

    Raises:
        UserError: `data` is not UTF-8 and the policy (`data.invalid_utf8`) is `error`.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if policy == "skip":
            return None
        if policy == "replace":
            return data.decode("utf-8", errors="replace")
        raise UserError(
            f"{place}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8. "
            f"data.invalid_utf8 is 'error'; allowed: error, replace (with U+FFFD), "
            f"skip (the document)"
        ) from None


def _open(file: Path) -> IO[bytes]:
    try:
        return file.open("rb")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None


def text_documents(files: Sequence[Path], invalid_utf8: str) -> Iterator[Document]:
    """A document a file; `done` counts bytes."""
    done = 0
    for file in files:
        with _open(file) as raw:
            data = raw.read()
        done += len(data)
        yield Document(decode_utf8(data, invalid_utf8, str(file)), done)


def jsonl_documents(files: Sequence[Path], column: str, invalid_utf8: str) -> Iterator[Document]:
    """A document a line, from plain or gzip files; `done` counts bytes of the files as they lie."""
    before = 0
    for file in files:
        with _open(file) as raw, _unpacked(raw, file) as lines:
            for number, line in _numbered_lines(lines, file):
                if line.strip():
                    text = _json_text(line, column, invalid_utf8, f"{file}, line {number}")
                    yield Document(text, before + raw.tell())
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


def _json_text(line: bytes, column: str, invalid_utf8: str, place: str) -> str | None:
    decoded = decode_utf8(line, invalid_utf8, place)
    if decoded is None:
        return None
    try:
        row = json.loads(decoded)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(row, dict):
        raise UserError(f"{place}: {_kind(row)}, not an object with a column '{column}'")
    if column not in row:
        raise wrong_column(place, column, row)
    text = row[column]
    if not isinstance(text, str):
        raise not_text(place, column, text)
    # An escaped lone surrogate is legal JSON and no text: it has no UTF-8 form.
    return decode_utf8(text.encode("utf-8", errors="surrogatepass"), invalid_utf8, place)


def parquet_documents(files: Sequence[Path], column: str, invalid_utf8: str) -> Iterator[Document]:
    """A document a row; `done` counts bytes of the files, by the rows read of each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    before = 0
    for file in files:
        try:
            parquet = pq.ParquetFile(file)
            _check_arrow_column(parquet.schema_arrow, column, str(file))
            size, rows = file.stat().st_size, max(parquet.metadata.num_rows, 1)
            batches = parquet.iter_batches(batch_size=ROWS_AT_ONCE, columns=[column])
            for row, text in _arrow_texts(
                (batch.column(0) for batch in batches), column, invalid_utf8, str(file)
            ):
                yield Document(text, before + size * row // rows)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{file}: truncated or damaged parquet ({str(error).splitlines()[0]}); "
                f"copy the file again, or leave it out of the pattern"
            ) from None
        before += size


def hf_documents(dataset: Any, column: str, invalid_utf8: str, place: str) -> Iterator[Document]:
    """A document a row of a `datasets.Dataset`; `done` counts rows."""
    _check_arrow_column(dataset.features.arrow_schema, column, place)
    batches = dataset.select_columns([column]).with_format("arrow").iter(batch_size=ROWS_AT_ONCE)
    columns = (chunk for table in batches for chunk in table.column(column).chunks)
    for row, text in _arrow_texts(columns, column, invalid_utf8, place):
        yield Document(text, row)


def _arrow_texts(
    arrays: Iterator["pa.Array"], column: str, invalid_utf8: str, place: str
) -> Iterator[tuple[int, str | None]]:
    """Numbers the rows from 1. Read as bytes, because Arrow does not check that text is UTF-8."""
    import pyarrow as pa

    row = 0
    for array in arrays:
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        for value in array.cast(pa.large_binary()).to_pylist():
            row += 1
            where = f"{place}, row {row}"
            if value is None:
                raise not_text(where, column, None)
            yield row, decode_utf8(value, invalid_utf8, where)


def _check_arrow_column(schema: "pa.Schema", column: str, place: str) -> None:
    import pyarrow as pa

    if column not in schema.names:
        raise wrong_column(place, column, schema.names)
    kind = schema.field(column).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (
        pa.types.is_string(value)
        or pa.types.is_large_string(value)
        or pa.types.is_string_view(value)
    ):
        raise UserError(f"{place}: column '{column}' holds {kind}, not text; choose data.column")


def wrong_column(place: str, column: str, columns: Any) -> UserError:
    names = [str(name) for name in columns]
    return UserError(
        f"{place}: no column '{column}'; columns: {', '.join(names)}. Set data.column."
        f"{did_you_mean(column, names)}"
    )


def not_text(place: str, column: str, value: object) -> UserError:
    return UserError(
        f"{place}: column '{column}' is {_kind(value)}, not text; mend or remove the row"
    )


def _kind(value: object) -> str:
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
