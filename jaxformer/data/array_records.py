"""Rows of ArrayRecord files, which Grain and MaxText read.

A record is an object of JSON if it begins with `{`, a `tf.train.Example` if it is one, as
TensorFlow Datasets writes it, and else plain UTF-8 in the column `text`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from jaxformer.data.json_rows import json_row
from jaxformer.data.object_rows import row_of_object
from jaxformer.data.rows import Column, Policies, Row
from jaxformer.data.tf_example import read_example
from jaxformer.data.units import FilePart, share
from jaxformer.errors import UserError

PLAIN = "text"  # the column of a record that is neither JSON nor an Example


def array_record_rows(
    file: FilePart, columns: Sequence[Column], policies: Policies
) -> Iterator[Row]:
    """One row per record; a file is cut by the numbers of its records.

    Raises:
        UserError: the file is not on a disk, or is truncated or damaged.
    """
    if file.place.is_remote:
        raise UserError(
            f"{file.place}: the package array_record reads files on a disk only; copy the files, "
            f"mount the bucket, or write them as Parquet"
        )
    reader = _open(file)
    count = reader.num_records()
    begin, end = (share(count, edge, file.parts) for edge in (file.part, file.part + 1))
    for number, record in enumerate(_records(reader, file, begin, end), start=1):
        place = f"{file.place}, record {begin + number}"
        yield _row(record, place, file.size * number // (end - begin), columns, policies)


def _records(reader: Any, file: FilePart, begin: int, end: int) -> Iterator[bytes]:
    if begin == end:
        return
    try:
        reader.seek(begin)
        for _ in range(begin, end):
            yield reader.read()
        reader.close()
    except (RuntimeError, IndexError) as error:
        raise _damaged(file, str(error).splitlines()[0]) from None


def _open(file: FilePart) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        file.place.open().close()  # the reader's own errors say little
        reader = ArrayRecordReader(str(file.place.path), "max_parallelism:0")
    except OSError as error:
        raise UserError(f"{file.place}: cannot be read: {error.strerror}") from None
    except RuntimeError as error:
        raise _damaged(file, str(error)) from None
    if not reader.ok():
        raise _damaged(file, "it does not end as such a file does")
    return reader


def _row(
    record: bytes, place: str, done: int, columns: Sequence[Column], policies: Policies
) -> Row:
    if record.lstrip()[:1] == b"{":
        return json_row(record, place, done, columns, policies)
    value = read_example(record) or {PLAIN: record}
    return row_of_object(value, place, done, columns, policies)


def _damaged(file: FilePart, reason: str) -> UserError:
    return UserError(
        f"{file.place}: not an ArrayRecord file, or truncated or damaged ({reason}); copy the "
        f"file again, or leave it out of the pattern"
    )
