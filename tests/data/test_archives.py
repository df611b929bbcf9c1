"""ArrayRecord files, and tar files as webdataset writes them."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from jaxformer.data.rows import Column
from jaxformer.data.sources import open_source
from jaxformer.data.tf_example import NUMBERS, read_example
from jaxformer.errors import UserError


def texts(name: str, column: str = "text", **policies: str) -> list[str | None]:
    rows = open_source(name, **{"invalid_utf8": "error", **policies}).rows([Column(column, str)])
    return [row.values and row.values[0] for row in rows]


def write_records(file: Path, records: list[bytes]) -> str:
    writer = ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return f"arrayrecord:{file}"


def field(number: int, content: bytes) -> bytes:
    """A field of protobuf with a length, of at most 2^14 bytes."""
    size = len(content)
    sizes = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return bytes([number << 3 | 2]) + sizes + content


def example(features: dict[str, list[bytes] | int]) -> bytes:
    """A `tf.train.Example`."""
    entries = b""
    for name, values in features.items():
        if isinstance(values, int):
            feature = field(3, field(1, bytes([values])))
        else:
            feature = field(1, b"".join(field(1, value) for value in values))
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def tar(file: Path, members: list[tuple[str, bytes]], mode: str = "w") -> str:
    with tarfile.open(file, mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return f"webdataset:{file}"


def test_a_record_is_json_an_example_or_text(tmp_path: Path) -> None:
    records = [
        json.dumps({"text": "zwei ü"}, ensure_ascii=False).encode(),
        example({"text": ["naïve".encode()], "id": 7}),
        b"plain\ntext",
        b"",
        b"\n\x05 begins as an Example does",
    ]
    assert texts(write_records(tmp_path / "a", records)) == [
        "zwei ü",
        "naïve",
        "plain\ntext",
        "",
        "\n\x05 begins as an Example does",
    ]
    assert texts(write_records(tmp_path / "a", [])) == []


def test_features_of_an_example_are_bytes_or_numbers() -> None:
    features = {"text": [b"a" * 300], "words": [b"one", b"two"], "none": [], "id": 7}
    assert read_example(example(features)) == {
        "text": b"a" * 300,
        "words": [b"one", b"two"],
        "none": None,
        "id": pytest.approx(NUMBERS, nan_ok=True),
    }
    for record in (b"", b"text", b"\n", b"\n\x02ab", example({"text": [b"a"]})[:-1], b"\xff" * 20):
        assert read_example(record) is None


def test_a_wrong_record_is_named(tmp_path: Path) -> None:
    good = b'{"text": "a"}'
    for record, message in {
        b'{"txt": "b"}': r"record 2: no column 'text'; columns: txt\. .* Did you mean 'txt'\?",
        b'{"text": 5}': r"record 2: column 'text' is a number, not text",
        b'{"text"': r"record 2 is not JSON: .*data\.bad_rows=skip",
        b"caf\xe9": r"record 2: byte 0xe9 at offset 3 is not UTF-8",
        example({"text": 3}): r"record 2: column 'text' is a number, not text",
        example({"body": [b"b"]}): r"record 2: no column 'text'; columns: body\.",
    }.items():
        name = write_records(tmp_path / "a", [good, record])
        with pytest.raises(UserError, match=message):
            texts(name)


def test_array_records_that_are_damaged_or_something_else_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a"
    name = write_records(file, [json.dumps({"text": str(row)}).encode() for row in range(1000)])
    whole = file.read_bytes()
    middle = 70_000
    damaged = whole[:middle] + bytes(99) + whole[middle + 99 :]
    for content in (whole[: len(whole) // 2], b"", b"text\n" * 999, damaged):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"a: not an ArrayRecord file, or truncated or damaged"):
            texts(name)


def test_files_of_a_sample_are_its_columns(tmp_path: Path) -> None:
    name = tar(
        tmp_path / "a.tar",
        [
            ("shard/0001.jpg", b"\xff\xd8\xff"),
            ("shard/0001.txt", "zwei ü".encode()),
            ("shard/0001.json", b'{"caption": "one", "meta": {"text": "deep"}}'),
            ("shard/0002.txt", b"two"),
            ("shard/0002.JSON", b'{"caption": "2"}'),
            ("shard/0003.seg.txt", b"three"),
            ("shard/.hidden", b""),
            ("README", b"no sample"),
        ],
    )
    skip = {"missing_text": "skip"}
    assert texts(name, "txt", **skip) == ["zwei ü", "two", None]
    assert texts(name, "json.caption", **skip) == ["one", "2", None]
    assert texts(name, "json.meta.text", **skip) == ["deep", None, None]
    assert texts(name, "seg.txt", **skip) == [None, None, "three"]
    for column, message in {
        "json.title": r"sample 'shard/0001': column 'json' has no field 'title'; fields: caption,",
        "cls": r"sample 'shard/0001': no column 'cls'; columns: jpg, txt, json\.",
        "json": r"sample 'shard/0001': column 'json' is an object, not text",
        "txt": r"sample 'shard/0003': no column 'txt'; columns: seg\.txt",
    }.items():
        with pytest.raises(UserError, match=message):
            texts(name, column)


def test_a_sample_may_be_the_text_of_bad_bytes_or_bad_json(tmp_path: Path) -> None:
    name = tar(tmp_path / "a.tar", [("1.json", b"{"), ("2.json", b'{"a": "b\xe9"}'), ("3.a", b"")])
    with pytest.raises(UserError, match=r"sample '1', json is not JSON"):
        texts(name, "json.a")
    policies = {"invalid_utf8": "skip", "missing_text": "skip", "bad_rows": "skip"}
    rows = open_source(name, **policies).rows([Column("json.a", str)])
    assert [row.left_out for row in rows] == ["bad", "not_utf8", "missing"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_file_that_was_cut_is_named_wherever_it_was(mode: str, tmp_path: Path) -> None:
    name = tar(tmp_path / "a", [(f"{row}.txt", b"text " * 300) for row in range(4)], mode)
    assert len(texts(name, "txt")) == 4
    whole = (tmp_path / "a").read_bytes()
    cuts = range(0, 4 * 2048 + 1, 512) if mode == "w" else [len(whole) // 2, len(whole) - 9]
    for cut in cuts:
        (tmp_path / "a").write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"a: truncated or damaged \S+.* \(.*\); copy the file"):
            texts(name, "txt")
    if mode == "w":
        (tmp_path / "a").write_bytes(whole[:2048] + bytes([1]) * 512 + whole[2560:])
        with pytest.raises(UserError, match=r"truncated or damaged tar archive \(.*\)"):
            texts(name, "txt")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_file_are_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("0001.txt")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(UserError, match=r"a\.tar: '0001\.txt' is a link or a device; allowed: f"):
        texts(f"webdataset:{tmp_path}/a.tar", "txt")


def test_what_is_no_tar_file_and_a_file_twice_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"text\n" * 999)
    with pytest.raises(UserError, match=r"a: truncated or damaged tar archive"):
        texts(f"webdataset:{tmp_path}/a", "txt")
    (tmp_path / "b").write_bytes(gzip.compress(b"text\n" * 999))
    with pytest.raises(UserError, match=r"b: truncated or damaged"):
        texts(f"webdataset:{tmp_path}/b", "txt")
    name = tar(tmp_path / "c", [("1.txt", b"a"), ("1.txt", b"b")])
    with pytest.raises(UserError, match=r"c: '1\.txt' is there twice; remove one of them"):
        texts(name, "txt")
