"""Sources in a bucket and on web servers are read as on a disk, and their faults are named."""

import gzip
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import gcsfs
import pytest

from jaxformer import storage
from jaxformer.data.rows import Column
from jaxformer.data.sources import open_source
from jaxformer.data.unpacking import open_text
from jaxformer.errors import UserError
from jaxformer.storage import Place, Unreachable
from tests.data.test_units import (
    check_units,
    lines,
    read,
    write_array_records,
    write_jsonl,
    write_parquet,
    write_text,
    write_webdataset,
)
from tests.data.web_servers import Server, web_server

LINES = [f"text {number} " * 9 for number in range(100)]


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(storage, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 1.0)
    with web_server() as server:
        yield server


@pytest.mark.parametrize("write", [write_jsonl, write_text, write_parquet, write_webdataset])
def test_units_in_a_bucket_are_those_on_a_disk(
    write: Callable[[Path], str], bucket: None, tmp_path: Path
) -> None:
    name = write(tmp_path)
    kind, place = name.split(":")[0], f"gs://runs/{write.__name__}"
    gcsfs.GCSFileSystem().put(str(tmp_path), place, recursive=True)
    here, there = open_source(name, "error"), open_source(f"{kind}:{place}/*", "error")
    assert read(here) == read(there)
    assert here.size == there.size
    for target in (400, 10**9):
        assert check_units(there, target) == here.units(target)


def test_patterns_in_a_bucket_cross_folders_and_have_braces(bucket: None) -> None:
    for name in ("deep/one/a.txt", "deep/b.txt", "deep/c.md"):
        Place(f"gs://runs/{name}").write(name.encode())
    for pattern, names in {
        "deep/**/*.txt": ["deep/b.txt", "deep/one/a.txt"],
        "deep/*.{txt,md}": ["deep/b.txt", "deep/c.md"],
        "deep/{c.md,b.txt}": ["deep/b.txt", "deep/c.md"],
    }.items():
        assert read(open_source(f"text:gs://runs/{pattern}", "error")) == names
    for pattern, message in {
        "deep/*.py": r"'text:gs://runs/deep/\*\.py': the pattern matches no file \(\*\* crosses",
        "deep/d.txt": r"there is no file gs://runs/deep/d\.txt; check the address",
        "deep": r"gs://runs/deep is a folder; name its files, as in text:gs://runs/deep/\*\*",
    }.items():
        with pytest.raises(UserError, match=message):
            open_source(f"text:gs://runs/{pattern}", "error")
    for name, message in {
        "text:gs://nowhere/a.txt": r"there is no file gs://nowhere/a\.txt; check the address",
        "text:gs://nowhere/*.txt": r"there is no bucket or folder of gs://nowhere/\*\.txt; check",
        "text:gs://": r"'text:gs://' names no file; give one, as in text:gs://BUCKET/a\.txt",
        "text:s4://runs/a.txt": r"the scheme 's4' is unknown; allowed: a path on a disk, gs://, s3",
    }.items():
        with pytest.raises(UserError, match=message):
            open_source(name, "error")


def test_a_changed_object_has_another_fingerprint(bucket: None) -> None:
    place = Place("gs://runs/changing.txt")
    place.write(b"one")
    source = open_source("text:gs://runs/changing.txt", "error")
    first = source.fingerprint()
    assert source.fingerprint() == first
    place.write(b"two")
    assert source.fingerprint() != first


def test_array_records_in_a_bucket_are_refused(bucket: None) -> None:
    Place("gs://runs/a.arrayrecord").write(b"anything")
    with pytest.raises(UserError, match="array_record reads files on a disk only; copy the files"):
        read(open_source("arrayrecord:gs://runs/a.arrayrecord", "error"))


@pytest.mark.parametrize("sizes", [True, False])
@pytest.mark.parametrize("ranges", [True, False])
def test_any_web_server_gives_lines(ranges: bool, sizes: bool, web: Server) -> None:
    web.ranges, web.sizes = ranges, sizes
    web.files = {
        "/0.jsonl": lines(LINES[:60]),
        "/1.jsonl.gz": gzip.compress(lines(LINES[60:])),
    }
    source = open_source(f"jsonl:{web.address}/{{0.jsonl,1.jsonl.gz}}", "error")
    assert source.size == (sum(map(len, web.files.values())) if sizes else 0)
    assert read(source) == LINES
    assert read(pickle.loads(pickle.dumps(source))) == LINES  # noqa: S301
    check_units(source, 500)


def test_a_slice_of_a_web_server_that_gives_ranges_is_not_the_whole_file(
    web: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "READ_AHEAD", 512)
    web.files = {"/a.jsonl": lines(LINES)}
    source = open_source(f"jsonl:{web.address}/a.jsonl", "error")
    units = source.units(source.size // 10)
    assert len(read(source, units[5])) in (9, 10, 11)
    assert web.served < source.size // 4


def test_parquet_of_a_web_server_needs_ranges(web: Server, tmp_path: Path) -> None:
    name = write_parquet(tmp_path)
    web.files = {f"/{file.name}": file.read_bytes() for file in tmp_path.iterdir()}
    source = open_source(f"parquet:{web.address}/{{0..3}}", "error")
    assert read(source) == read(open_source(name, "error"))
    check_units(source, 300)
    web.ranges = False
    with pytest.raises(UserError, match=r"/0: its web server gives no parts of a file, which Parq"):
        read(source)


def test_numbered_files_are_named_and_no_list_is_asked_of_a_web_server(web: Server) -> None:
    web.files = {f"/part-{number:03}.txt": str(number).encode() for number in range(8, 12)}
    names = open_source(f"text:{web.address}/part-{{008..011}}.txt", "error")
    assert read(names) == ["8", "9", "10", "11"]
    with pytest.raises(UserError, match=r"tells no list of its files; name them, as in https://"):
        open_source(f"text:{web.address}/*.txt", "error")
    with pytest.raises(UserError, match=r"there is no file http://localhost:\d+/part-012\.txt"):
        open_source(f"text:{web.address}/part-{{008..012}}.txt", "error")
    first = names.fingerprint()
    web.files["/part-009.txt"] = b"other"
    assert names.fingerprint() != first


@pytest.mark.parametrize("sizes", [True, False])
@pytest.mark.parametrize("ranges", [True, False])
def test_lost_connections_and_passing_failures_lose_nothing(
    ranges: bool, sizes: bool, web: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "READ_AHEAD", 4096)
    web.files = {"/a.jsonl": lines(LINES)}
    web.ranges, web.sizes = ranges, sizes
    source = open_source(f"jsonl:{web.address}/a.jsonl", "error")
    web.failures, web.cut_at, web.cuts = 2, 1500, 3
    assert read(source) == LINES
    assert web.cuts == 0


def test_a_server_that_denies_or_does_not_recover_is_named(web: Server) -> None:
    web.files = {"/a.txt": b"a"}
    source = open_source(f"text:{web.address}/a.txt", "error")
    web.status = 403
    for action in (lambda: read(source), source.fingerprint):
        with pytest.raises(UserError, match=r"/a\.txt: access is denied \(403.*credentials"):
            action()
    web.status = 503
    with pytest.raises(Unreachable, match=r"/a\.txt could not be reached for 1 s: 503"):
        read(source)
    web.status = 404
    with pytest.raises(UserError, match=r"/a\.txt: cannot be read: there is no such file"):
        read(source)


def test_a_file_that_became_shorter_is_not_taken_for_whole(
    web: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "READ_AHEAD", 512)
    web.files = {"/a.jsonl": lines(LINES)}
    with open_text(Place(f"{web.address}/a.jsonl")) as text:
        assert text.readline()
        web.files["/a.jsonl"] = lines(LINES[:10])
        with pytest.raises(UserError, match=r"\(it ends after [\d,]+ of [\d,]+ bytes\); copy the"):
            text.read(1 << 20)


def test_a_packed_file_of_a_web_server_that_was_cut_is_named(web: Server) -> None:
    packed = gzip.compress(json.dumps({"text": "a" * 99}).encode())
    web.files = {"/a.jsonl.gz": packed[: len(packed) // 2]}
    source = open_source(f"jsonl:{web.address}/a.jsonl.gz", "error")
    with pytest.raises(UserError, match=r"/a\.jsonl\.gz: truncated or damaged gzip .*copy the"):
        list(source.rows([Column("text", str)]))


def test_array_records_are_still_read_from_a_disk(tmp_path: Path) -> None:
    assert read(open_source(write_array_records(tmp_path), "error"))[:1] == ["text 0 of 0"]
