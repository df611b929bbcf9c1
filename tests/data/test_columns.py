"""Fields inside of columns, and the rows and documents that are left out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from jaxformer.config import DataConfig
from jaxformer.data.documents import Lengths, TextFormat, read_documents
from jaxformer.data.rows import Column
from jaxformer.data.sources import open_source
from jaxformer.errors import UserError
from tests.data.test_archives import write_records

Rows = list[dict[str, Any]]


def write_jsonl(file: Path, rows: Rows) -> str:
    file.write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{file}"


def write_array(file: Path, rows: Rows) -> str:
    file.write_text(json.dumps(rows))
    return f"jsonl:{file}"


def write_parquet(file: Path, rows: Rows) -> str:
    pq.write_table(pa.Table.from_pylist(rows), file)
    return f"parquet:{file}"


def write_saved(file: Path, rows: Rows) -> str:
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(file)
    return f"hf:{file}"


def write_array_record(file: Path, rows: Rows) -> str:
    return write_records(file, [json.dumps(row).encode() for row in rows])


WRITERS = (write_jsonl, write_array, write_parquet, write_saved, write_array_record)
every_kind = pytest.mark.parametrize("write", WRITERS)


def texts(name: str, column: str, **policies: str) -> list[str | None]:
    rows = open_source(name, **{"invalid_utf8": "error", **policies}).rows([Column(column, str)])
    return [row.values and row.values[0] for row in rows]


@every_kind
def test_a_dot_leads_to_a_field_inside_of_a_column(
    write: Callable[[Path, Rows], str], tmp_path: Path
) -> None:
    rows = [
        {"meta": {"text": f"deep {row}", "more": {"body.en": f"deeper {row}"}}, "n": row}
        for row in range(3)
    ]
    name = write(tmp_path / "rows", rows)
    assert texts(name, "meta.text") == ["deep 0", "deep 1", "deep 2"]
    assert texts(name, "meta.more.body.en") == ["deeper 0", "deeper 1", "deeper 2"]


@every_kind
def test_a_column_of_that_very_name_comes_first(
    write: Callable[[Path, Rows], str], tmp_path: Path
) -> None:
    rows = [{"meta.text": "named", "meta": {"text": "nested"}}]
    assert texts(write(tmp_path / "rows", rows), "meta.text") == ["named"]


@every_kind
def test_a_field_that_is_not_there_lists_those_at_its_level(
    write: Callable[[Path, Rows], str], tmp_path: Path
) -> None:
    rows = [{"meta": {"text": "a", "more": {"body": "b"}}, "n": 1}]
    name = write(tmp_path / "rows", rows)
    for column, message in {
        "meta.txt": r"column 'meta' has no field 'txt'; fields: text, more\. Set data\.column to "
        r"one of them, as in meta\.text\. Did you mean 'meta\.text'\?",
        "meta.more.bdy": r"column 'meta\.more' has no field 'bdy'; fields: body\. .*'meta.more.bod",
        "mata.text": r"no column 'mata\.text'; columns: meta, n\.",
        "n.text": r"column 'n' (is a number|holds int64), not an object with a field 'text'",
        "meta": r"column 'meta' (is an object|holds struct.*), not text",
    }.items():
        with pytest.raises(UserError, match=message):
            texts(name, column)


@every_kind
def test_null_anywhere_on_the_way_is_missing_text(
    write: Callable[[Path, Rows], str], tmp_path: Path
) -> None:
    rows = [
        {"meta": {"text": "a"}},
        {"meta": None},
        {"meta": {"text": None}},
        {"meta": {"text": "d"}},
    ]
    name = write(tmp_path / "rows", rows)
    assert texts(name, "meta.text", missing_text="skip") == ["a", None, None, "d"]
    with pytest.raises(UserError, match=r" 2: column 'meta\.text' is null, not text; .*missing_"):
        texts(name, "meta.text")


def test_rows_that_are_no_rows_follow_the_policy(tmp_path: Path) -> None:
    bad = [b"{", b"[1]", b"12", b'{"text": 5}', b'{"text": ["a"]}', b"[" * 99_999]
    good = b'{"text": "good"}'
    (tmp_path / "a").write_bytes(b"\n".join([good, *bad, good]))
    name = f"jsonl:{tmp_path}/a"
    rows = open_source(name, "error", "error", "skip").rows([Column("text", str)])
    assert [row.left_out for row in rows] == [None, *["bad"] * len(bad), None]
    for line in bad:
        (tmp_path / "a").write_bytes(b"\n".join([good, line]))
        with pytest.raises(UserError, match=r"a, line 2.*skip all such rows with data\.bad_rows="):
            texts(name, "text")
    (tmp_path / "a").write_text('[{"text": "a"}, 12, {"text": 5}, {"text": "d"}]')
    assert texts(name, "text", bad_rows="skip") == ["a", None, None, "d"]
    (tmp_path / "a").write_text('[{"text": "a"}, {"te')
    with pytest.raises(UserError, match="row 2 is not JSON"):
        texts(name, "text", bad_rows="skip")  # the rest cannot be found again


def test_a_wrong_column_and_a_damaged_file_are_errors_whatever_the_policies(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"body": "a"}')
    with pytest.raises(UserError, match="no column 'text'"):
        texts(f"jsonl:{tmp_path}/a", "text", bad_rows="skip")
    (tmp_path / "a.gz").write_text('{"text": "a"}')
    with pytest.raises(UserError, match="truncated or damaged gzip"):
        texts(f"jsonl:{tmp_path}/a.gz", "text", bad_rows="skip")


def test_documents_outside_of_the_lengths_are_left_out_and_say_so(tmp_path: Path) -> None:
    lines = ["", "ü", "üü", "üüü", "üüüü"]
    name = write_jsonl(tmp_path / "a", [{"text": line} for line in lines])
    (tmp_path / "b").write_text("ü" * 50_000, encoding="utf-8")

    def left_out(name: str, *lengths: int | None) -> list[str | None]:
        documents = list(
            read_documents(open_source(name, "error"), TextFormat("text"), Lengths(*lengths))
        )
        assert all((each.text is None) == bool(each.left_out) for each in documents)
        return [each.left_out for each in documents]

    assert left_out(name) == [None] * 5
    assert left_out(name, 2, 3) == [None, "short", None, None, "long"]
    assert left_out(name, None, 1) == [None, None, "long", "long", "long"]
    assert left_out(f"text:{tmp_path}/b", 50_000, 50_000) == [None]
    assert left_out(f"text:{tmp_path}/b", 50_001) == ["short"]
    assert left_out(f"text:{tmp_path}/b", None, 49_999) == ["long"]


def test_every_reason_is_on_the_documents_of_a_unit(tmp_path: Path) -> None:
    lines = [b'{"text": "good"}', b'{"text": null}', b'{"text": "\xff"}', b"{", b'{"text": "a"}']
    (tmp_path / "a").write_bytes(b"\n".join(lines))
    source = open_source(f"jsonl:{tmp_path}/a", "skip", "skip", "skip")
    units = source.units(20)
    assert len(units) > 2
    documents = [
        document
        for unit in units
        for document in read_documents(source, TextFormat("text"), Lengths(2), unit)
    ]
    assert [each.left_out for each in documents] == [None, "missing", "not_utf8", "bad", "short"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"min_chars": 9, "max_chars": 8}, "min_chars 9 is more than max_chars 8"),
        ({"min_chars": 0}, "min_chars"),
        ({"bad_rows": "skp"}, "bad_rows"),
        ({"source": "jsonl:s4://a/b"}, "the scheme 's4' is unknown; allowed: a path on a disk, gs"),
        ({"source": "text:file:///a"}, r"'file:///a': write /a"),
        (
            {"source": "text:https://me:pass@host/a"},
            "an address https:// holds a password, wh",
        ),
        ({"source": "hf:gs://a/b"}, "'gs://a/b' is a place that cannot be used here"),
        (
            {"column": "body", "source": "text:a"},
            "no source has columns; leave it out, or give ",
        ),
    ],
)
def test_a_wrong_key_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate(keys)


def test_any_place_of_files_is_allowed() -> None:
    for kind in ("text", "jsonl", "parquet", "arrayrecord", "webdataset"):
        for where in ("gs://a/*.x", "s3://a/**", "https://a/{00..99}", "memory://a", "a/b"):
            DataConfig.model_validate({"source": f"{kind}:{where}"})
