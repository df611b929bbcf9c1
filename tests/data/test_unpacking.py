import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxformer.data import json_rows
from jaxformer.data.rows import Column
from jaxformer.data.sources import open_source
from jaxformer.errors import UserError

TEXT = "one\n\nnaïve, and some more text to cut"
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "Zstandard": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


def texts(source: str, invalid_utf8: str = "error") -> list[str | None]:
    rows = open_source(source, invalid_utf8).rows([Column("text", str)])
    return [row.values and row.values[0] for row in rows]


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed_files_are_read_whatever_their_names(kind: str, tmp_path: Path) -> None:
    pack = COMPRESS[kind]
    (tmp_path / "a.txt").write_bytes(pack(TEXT.encode()))
    (tmp_path / "b.txt").write_bytes(pack(TEXT[:5].encode()) + pack(TEXT[5:].encode()))
    assert texts(f"text:{tmp_path}/*.txt", "replace") == [TEXT, TEXT]
    (tmp_path / "a.jsonl").write_bytes(pack(b'{"text": "one"}\n{"text": "two"}\n'))
    source = open_source(f"jsonl:{tmp_path}/a.jsonl", "error")
    rows = list(source.rows([Column("text", str)]))
    assert [row.values for row in rows] == [("one",), ("two",)]
    assert rows[-1].done == source.size


@pytest.mark.parametrize("policy", ["error", "replace", "skip"])
@pytest.mark.parametrize("kind", COMPRESS)
def test_a_compressed_file_that_was_cut_is_named(kind: str, policy: str, tmp_path: Path) -> None:
    whole = COMPRESS[kind](random.Random(0).randbytes(5000).hex().encode())
    (tmp_path / "a").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"a: truncated or damaged {kind} \(.*\); copy the file"):
        texts(f"text:{tmp_path}/a", policy)


def packed_tar() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    return packed.getvalue()


def zipped() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.txt", "text")
    return packed.getvalue()


def parquet() -> bytes:
    packed = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"]}), packed)
    return packed.getvalue()


NO_TEXTS = {
    "a tar archive inside of gzip, not text; give it as webdataset:GLOB": packed_tar(),
    "compressed by gzip once more": gzip.compress(gzip.compress(b"text")),
    "a zip archive, not text; unpack it, and name the files inside": zipped(),
    "a Parquet file, not text; give it as parquet:GLOB": parquet(),
    "a PNG image": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "a PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj",
    "an SQLite database": b"SQLite format 3\x00\x10\x00",
    "a GGUF file": b"GGUF\x03\x00\x00\x00",
    "a safetensors file": b'\x40\x00\x00\x00\x00\x00\x00\x00{"a": {"dtype": "F32"}}',
    "an Arrow file": b"ARROW1\x00\x00\xff\xff\xff\xff",
    "an LZ4 file": b"\x04\x22\x4d\x18\x64\x40\xa7",
    "UTF-16, by its byte order mark; convert it to UTF-8, as with: iconv": "text".encode("utf-16"),
    "UTF-32, by its byte order mark": "text".encode("utf-32"),
}


@pytest.mark.parametrize("policy", ["error", "replace", "skip"])
@pytest.mark.parametrize("what", NO_TEXTS)
def test_what_is_no_text_is_refused_by_what_it_is(what: str, policy: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(NO_TEXTS[what])
    for kind in ("text", "jsonl"):
        with pytest.raises(UserError) as refused:
            texts(f"{kind}:{tmp_path}/a.txt", policy)
        assert str(refused.value).startswith(f"{tmp_path}/a.txt is {what}")


@pytest.mark.parametrize(
    "text", ["ORCHESTRA", "GGUF is a format", "PARIS", "ID3", "BZh91", "%PDF-"]
)
def test_text_that_begins_with_the_letters_of_a_format_is_text(text: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text(text)
    assert texts(f"text:{tmp_path}/a") == [text]


def test_lines_in_a_parquet_source_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"text": "a"}')
    with pytest.raises(UserError, match=r"a is another file, not Parquet; read text as"):
        texts(f"parquet:{tmp_path}/a")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "b").write_bytes(b'\xef\xbb\xbf{"text": "one"}')
    (tmp_path / "c").write_bytes(gzip.compress(b"\xef\xbb\xbfone"))
    assert texts(f"text:{tmp_path}/[ac]") == ["one", "one"]
    assert texts(f"jsonl:{tmp_path}/b") == ["one"]


def test_an_array_of_json_is_read_item_by_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the pieces in which it is read."""
    rows = [
        {"text": text, "n": [1.5e3, {"a": None}]} for text in ("ü", 'a"\\]', "", "\ud83d\ude00")
    ]
    whole = " \n" + json.dumps(rows[:2])[:-1] + ", " + json.dumps(rows[2:], indent=2)[1:] + "\n"
    expected = [row["text"] for row in json.loads(whole)]
    for size in (1, 2, 7, 1000):
        monkeypatch.setattr(json_rows, "BYTES_AT_ONCE", size)
        (tmp_path / "a.json").write_text(whole, encoding="utf-8")
        assert texts(f"jsonl:{tmp_path}/a.json") == expected
        (tmp_path / "a.json").write_text(" [ ] ")
        assert texts(f"jsonl:{tmp_path}/a.json") == []


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (b'[{"text": "a"}, 12]', r"row 2: a number, not an object with a column 'text'"),
        (b'[{"text": "a"} {"text": "b"}]', r"row 1 is not JSON: '{' is where , or \] should be"),
        (b'[{"text": "a"}', r"row 1 is not JSON: the end of the file is where , or \] should be"),
        (b'[{"text": "a"}, ', r"row 2 is not JSON: Expecting value"),
        (b'[{"text": "a', r"row 1 is not JSON: Unterminated string"),
        (b'[{"text": "a"}, {"text" "b"}' + b" " * 99, r"row 2 is not JSON: Expecting ':' delim"),
        (b'[{"text": "a"}]\n{"text": "b"}', r": '{' follows the end of the array; allowed: one"),
        (b"[" * 100_000, r"row 1 is not JSON: it is nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", r"row 1 is not JSON: an integer has more than 4,300 digits"),
        (b'[{"text": "a\xff"}]', r"row 1: byte 0x.. at offset 1 is not UTF-8"),
    ],
)
def test_a_wrong_item_of_an_array_is_named(array: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(array)
    with pytest.raises(UserError, match=rf"a\.json.*{message}"):
        texts(f"jsonl:{tmp_path}/a.json")
