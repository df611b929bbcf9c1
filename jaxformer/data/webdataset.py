"""Rows of tar files as the package webdataset writes them, read from beginning to end.

Files that follow each other and have the same name before the first dot are a row, in which what
stands after the dot is a column: `0001.txt` is text in the column `txt`, and `caption` of the
object in `0001.json` is `json.caption`.
"""

import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from jaxformer.data.json_rows import read_value
from jaxformer.data.object_rows import row_of_object
from jaxformer.data.rows import BadRow, Column, Policies, Row, bad_row, decode_utf8
from jaxformer.data.units import FilePart
from jaxformer.data.unpacking import DAMAGE, UnpackedFile, open_unpacked
from jaxformer.errors import UserError

NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")


class _Sample(NamedTuple):
    """A row's files by column; None for those that nobody asks for."""

    key: str
    columns: dict[str, bytes | None]


class _Member(tarfile.TarInfo):
    """A header of the archive: one that is damaged or not there would pass for its end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the block at the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def webdataset_rows(file: FilePart, columns: Sequence[Column], policies: Policies) -> Iterator[Row]:
    """One row per sample; a tar file, compressed or not, cannot be cut.

    Raises:
        UserError: it is truncated or damaged, or holds links or devices.
    """
    if file.part:
        return
    with open_unpacked(file.place) as packed:
        for sample in _samples(packed, [column.name for column in columns]):
            place = f"{file.place}, sample '{sample.key}'"
            yield _row(sample, place, min(packed.done, file.size), columns, policies)


def _row(
    sample: _Sample, place: str, done: int, columns: Sequence[Column], policies: Policies
) -> Row:
    value: dict[str, Any] = {}
    for column, content in sample.columns.items():
        value[column] = content
        if content is None or column.rpartition(".")[2] != "json":
            continue
        text = decode_utf8(content, policies.invalid_utf8, f"{place}, {column}")
        if text is None:
            return Row(None, place, done, "not_utf8")
        try:
            value[column] = read_value(text, f"{place}, {column}")
        except BadRow as error:
            return bad_row(error, place, done, policies)
    return row_of_object(value, place, done, columns, policies)


def _samples(packed: UnpackedFile, wanted: Sequence[str]) -> Iterator[_Sample]:
    sample: _Sample | None = None
    for key, column, content in _contents(packed, wanted):
        if sample is not None and sample.key != key:
            yield sample
            sample = None
        sample = sample or _Sample(key, {})
        if column in sample.columns:
            raise UserError(f"{packed.place}: '{key}.{column}' is there twice; remove one of them")
        sample.columns[column] = content
    if sample is not None:
        yield sample


def _contents(
    packed: UnpackedFile, wanted: Sequence[str]
) -> Iterator[tuple[str, str, bytes | None]]:
    """Key, column and content of every file that has a column."""
    try:
        with closing(tarfile.open(fileobj=packed.content, mode="r|", tarinfo=_Member)) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # or all are kept
                if not member.isfile() and not member.isdir():
                    raise UserError(
                        f"{packed.place}: '{member.name}' is a link or a device; allowed: files. "
                        f"Pack the files themselves, as with: tar --dereference"
                    )
                name = NAME.fullmatch(member.name)
                if name is None or not member.isfile():
                    continue
                key, column = name[1], name[2].lower()
                content = archive.extractfile(member)
                is_wanted = any(f"{each}.".startswith(f"{column}.") for each in wanted)
                yield key, column, content.read() if content and is_wanted else None
    except (tarfile.TarError, *DAMAGE) as error:
        raise packed.damaged(str(error), kind="tar archive") from None
