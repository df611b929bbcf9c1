"""The units of a source, one after another, are its rows."""

import bz2
import gzip
import json
import pickle
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from pydantic import TypeAdapter

from jaxformer.data.rows import Column
from jaxformer.data.sources import Source, open_source
from jaxformer.data.units import Unit, plan_units, share
from jaxformer.errors import UserError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
TARGETS = (1, 2, 3, 7, 50, 333, 10**4, 10**12)


def read(source: Source, unit: Unit | None = None) -> list[str]:
    return [row.values[0] for row in source.rows([Column("text", str)], unit) if row.values]


def check_units(source: Source, target: int) -> tuple[Unit, ...]:
    """That the units have the rows and sizes of the source, and count what they have read."""
    units = source.units(target)
    assert units == open_source(source.name, "error").units(target)  # another process has the same
    assert sum(unit.size for unit in units) == source.size
    parts = [list(source.rows([Column("text", str)], unit)) for unit in units]
    assert [row.values for part in parts for row in part] == [
        row.values for row in source.rows([Column("text", str)])
    ]
    for unit, part in zip(units, parts, strict=True):
        counts = [row.done for row in part]
        assert counts == sorted(counts)
        assert all(0 <= done <= unit.size for done in counts)
    return units


def lines(texts: list[str], end: bytes = b"\n") -> bytes:
    return end.join(json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts)


def write_jsonl(folder: Path) -> str:
    long = "a line longer than most slices " * 20
    contents = {
        "a": lines(["one", "zwei ü", long, "", "日本語"]) + b"\n",
        "b_without_an_end": lines(["six", "seven"]),
        "c_empty": b"",
        "d_crlf": lines(["eight", "nine", "ten"], b"\r\n") + b"\r\n",
        "e_one_byte": b"\n",
        "f_mark": BYTE_ORDER_MARK + lines(["eleven", "twelve"]),
        "g_blank": b"\n\n" + lines(["13", "14"], b"\n\n\n") + b"\n\n",
        "h_packed": gzip.compress(lines(["15", "16"]) + b"\n"),
        "i_packed": bz2.compress(lines(["17", "18"])),
        "j_array": json.dumps([{"text": "19"}, {"text": "20"}], indent=2).encode(),
        "k_mark_alone": BYTE_ORDER_MARK,
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return f"jsonl:{folder}/*"


def write_text(folder: Path) -> str:
    for name, content in {"a": b"one", "b": b"", "c": b"x", "d": b"long " * 99}.items():
        (folder / name).write_bytes(content)
    return f"text:{folder}/*"


def write_parquet(folder: Path) -> str:
    for number, rows in enumerate((10, 1, 0, 25)):
        texts = pa.array([f"text {row} of {number}" for row in range(rows)], pa.string())
        pq.write_table(pa.table({"text": texts}), folder / str(number), row_group_size=3)
    return f"parquet:{folder}/*"


def write_array_records(folder: Path) -> str:
    for number, rows in enumerate((10, 1, 0, 5)):
        writer = ArrayRecordWriter(str(folder / str(number)), "group_size:2")
        for row in range(rows):
            writer.write(json.dumps({"text": f"text {row} of {number}"}).encode())
        writer.close()
    return f"arrayrecord:{folder}/*"


def write_webdataset(folder: Path) -> str:
    for number, mode in enumerate(("w", "w:gz")):
        with tarfile.open(folder / f"{number}.tar", mode) as archive:
            for row in range(4):
                content = json.dumps({"text": f"text {row} of {number}"}).encode()
                member = tarfile.TarInfo(f"{row}.text")
                member.size = len(content)
                archive.addfile(member, BytesIO(content))
    return f"webdataset:{folder}/*"


def write_saved(folder: Path) -> str:
    import datasets

    rows = datasets.Dataset.from_dict({"text": [f"text {row}" for row in range(23)]})
    rows.save_to_disk(folder / "saved")
    return f"hf:{folder}/saved"


WRITERS: tuple[Callable[[Path], str], ...] = (
    write_jsonl,
    write_text,
    write_parquet,
    write_array_records,
    write_webdataset,
    write_saved,
)


@pytest.mark.parametrize("write", WRITERS)
def test_units_of_every_kind_one_after_another_are_the_source(
    write: Callable[[Path], str], tmp_path: Path
) -> None:
    source = open_source(write(tmp_path), "error")
    assert len(read(source)) > 3
    targets = TARGETS
    if write in (write_array_records, write_webdataset):  # files of 64 KiB and more
        targets = (5_000, 30_000, 100_000, 10**12)
    for target in targets:
        check_units(source, target)
    assert len(source.units(10**12)) == 1


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_lines_of_random_lengths_are_in_one_slice_each_whatever_its_size(
    end: bytes, tmp_path: Path
) -> None:
    random = np.random.default_rng(len(end))
    texts = ["x" * int(size) for size in random.geometric(0.05, 40)]
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines(texts, end or b"\n") + end)
    source = open_source(f"jsonl:{file}", "error")
    assert read(source) == texts
    for target in (1, *map(int, random.integers(2, 400, 12))):
        units = check_units(source, target)
        assert len(units) == -(-source.size // target)
    ends = [list(source.rows([Column("text", str)], unit)) for unit in source.units(100)]
    assert sum(bool(part) for part in ends) > 5


def test_small_files_are_together_and_large_ones_cut() -> None:
    assert plan_units([3, 3, 3, 25, 0, 1], 6) == (
        Unit(0, 2, 0, 1, 6),
        Unit(2, 3, 0, 1, 3),
        *(Unit(3, 4, part, 5, 5) for part in range(5)),
        Unit(4, 6, 0, 1, 1),
    )
    assert plan_units([6, 7], 6) == (
        Unit(0, 1, 0, 1, 6),
        Unit(1, 2, 0, 2, 3),
        Unit(1, 2, 1, 2, 4),
    )
    assert plan_units([0, 0], 10) == (Unit(0, 2, 0, 1, 0),)
    assert plan_units([1], 1) == (Unit(0, 1, 0, 1, 1),)


def test_any_plan_has_every_byte_once() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        sizes = [int(size) for size in random.geometric(0.001, random.integers(1, 30)) - 1]
        target = int(random.integers(1, 3000))
        units = plan_units(sizes, target)
        files: list[tuple[int, int]] = []
        for unit in units:
            ends = [share(sizes[unit.first], unit.part + edge, unit.parts) for edge in (0, 1)]
            assert unit.size < 2 * target
            if unit.parts > 1:
                assert (unit.end, unit.size) == (unit.first + 1, ends[1] - ends[0])
            else:
                assert unit.size == sum(sizes[unit.first : unit.end])
            files.append((unit.first, unit.part))
        assert files == sorted(set(files))
        assert sum(unit.size for unit in units) == sum(sizes)


def test_a_unit_goes_through_json() -> None:
    unit = Unit(3, 4, 1, 2, 10**12)
    adapter = TypeAdapter(Unit)
    assert adapter.validate_json(adapter.dump_json(unit)) == unit
    assert Unit(*json.loads(json.dumps(unit))) == unit


def test_a_source_of_files_goes_to_other_processes_with_its_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [open_source(name, "error") for name in (write_text(tmp_path), "builtin:python")]
    sent = [pickle.dumps(source) for source in sources]
    monkeypatch.setattr("jaxformer.storage.Place.stored", None)
    for source, data in zip(sources, sent, strict=True):
        assert pickle.loads(data).units(10**5) == source.units(10**5)  # noqa: S301


def test_planning_opens_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write_jsonl(tmp_path)
    monkeypatch.setattr("jaxformer.storage.Place.open", None)
    source = open_source(name, "error")
    assert sum(unit.size for unit in source.units(10)) == source.size > 1000


def test_what_cannot_be_cut_is_in_the_first_part(tmp_path: Path) -> None:
    texts = [f"text {row}" for row in range(20)]
    contents = {
        "jsonl:packed": gzip.compress(lines(texts)),
        "jsonl:array": json.dumps([{"text": text} for text in texts]).encode(),
        "text:document": "\n".join(texts).encode(),
    }
    for name, content in contents.items():
        kind, file = name.split(":")
        (tmp_path / file).write_bytes(content)
        source = open_source(f"{kind}:{tmp_path}/{file}", "error")
        units = source.units(25)
        assert len(units) > 3
        first, *others = [read(source, unit) for unit in units]
        assert first == (["\n".join(texts)] if kind == "text" else texts)
        assert others == [[]] * len(others)


def test_a_wrong_line_of_a_slice_is_named_by_its_byte(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    content = lines(["a", "b", "c"]) + b'\n{"txt": "d"}\n'
    file.write_bytes(content)
    source = open_source(f"jsonl:{file}", "error")
    with pytest.raises(UserError, match=r"a\.jsonl, line 4: no column 'text'"):
        read(source)
    first, last = source.units(-(-len(content) // 2))
    assert read(source, first) == ["a", "b"]
    place = content.index(b'{"txt')
    with pytest.raises(UserError, match=rf"a\.jsonl, byte {place}: no column 'text'"):
        read(source, last)
    content = BYTE_ORDER_MARK + content
    file.write_bytes(content)
    source = open_source(f"jsonl:{file}", "error")
    with pytest.raises(UserError, match=rf"a\.jsonl, byte {place + 3}: no column 'text'"):
        read(source, source.units(len(content) // 2)[-1])


def test_rows_of_a_part_of_parquet_have_their_numbers_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    texts = ["a", "b", "c", "d", None, "f"]
    pq.write_table(pa.table({"text": texts}), file, row_group_size=2)
    source = open_source(f"parquet:{file}", "error")
    units = source.units(-(-source.size // 3))
    assert [read(source, unit) for unit in units[:2]] == [["a", "b"], ["c", "d"]]
    with pytest.raises(UserError, match=r"a\.parquet, row 5: column 'text' is null"):
        read(source, units[2])


def test_more_parts_than_row_groups_leave_some_empty(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b", "c", "d"]}), file, row_group_size=2)
    source = open_source(f"parquet:{file}", "error")
    parts = [read(source, unit) for unit in source.units(100)]
    assert len(parts) > 4
    assert [part for part in parts if part] == [["a", "b"], ["c", "d"]]
