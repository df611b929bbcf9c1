import gzip
import json
import os
import re
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxformer.data.finding import expand_braces
from jaxformer.data.rows import Column
from jaxformer.data.sources import open_source
from jaxformer.errors import UserError


def texts(
    source: str, column: str = "text", invalid_utf8: str = "error", missing_text: str = "error"
) -> list[str | None]:
    rows = open_source(source, invalid_utf8, missing_text).rows([Column(column, str)])
    return [row.values and row.values[0] for row in rows]


def write_parquet(file: Path, columns: dict, **options: object) -> None:
    pq.write_table(pa.table(columns), file, **options)


def test_text_is_a_document_a_file_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_bytes(f"{name}\r\nnaïve".encode())
    assert texts(f"text:{tmp_path}/*.txt") == ["a.txt\r\nnaïve", "b.txt\r\nnaïve"]


def test_patterns_cross_folders_with_two_stars(tmp_path: Path) -> None:
    (tmp_path / "one" / "two").mkdir(parents=True)
    (tmp_path / "one" / "two" / "deep.txt").write_text("deep")
    (tmp_path / "flat.txt").write_text("flat")
    assert texts(f"text:{tmp_path}/**/*.txt") == ["flat", "deep"]


def test_files_are_relative_to_the_working_directory_and_tilde_is_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert texts("text:a.txt") == texts("text:~/a.txt") == ["here"]
    relative, absolute = (
        open_source(name, "error") for name in ("text:a.txt", f"text:{tmp_path}/a.txt")
    )
    assert relative.identity == absolute.identity


def test_a_file_named_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("brackets")
    (tmp_path / "a1.txt").write_text("plain")
    assert texts(f"text:{tmp_path}/a[1].txt") == ["brackets"]


def test_braces_name_several_files(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    for name in ("one/a.txt", "one/b.md", "c.txt", "odd{name}.txt"):
        (tmp_path / name).write_text(name)
    assert texts(f"text:{tmp_path}/{{one/*.{{md,txt}},c.txt}}") == [
        "c.txt",
        "one/a.txt",
        "one/b.md",
    ]
    assert texts(f"text:{tmp_path}/odd{{name}}.txt") == ["odd{name}.txt"]
    assert texts(f"text:{tmp_path}/{{*.md,*.txt}}") == ["c.txt", "odd{name}.txt"]
    with pytest.raises(UserError, match=r"no such file in .*\. Did you mean 'c.txt'\?"):
        texts(f"text:{tmp_path}/{{c.txt,c.tx}}")
    assert expand_braces("a{b,c{1,2}}d{,e}") == ["abd", "abde", "ac1d", "ac1de", "ac2d", "ac2de"]
    assert expand_braces("{a}{,b") == ["{a}{,b"]
    assert expand_braces("{8..11}-{b..c}{x}") == [f"{n}-{{b..c}}{{x}}" for n in (8, 9, 10, 11)]
    assert expand_braces("{08..10},{2..0}{,a{1..2}}")[:4] == ["08,2", "08,2a1", "08,2a2", "08,1"]
    with pytest.raises(UserError, match=r"'\{0\.\.9{15}\}' stands for 1,000,000,000,000,000 names"):
        expand_braces(f"{{0..{'9' * 15}}}")


def test_a_pipe_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"a\.txt is a named pipe; name files"):
        texts(f"text:{tmp_path}/a.txt")


def test_jsonl_reads_plain_and_gzip_files_and_passes_blank_lines(tmp_path: Path) -> None:
    rows = [json.dumps({"text": text, "id": 1}) for text in ("one", "zwei ü", "2020-01-01")]
    (tmp_path / "a.jsonl").write_text("\n\n".join(rows) + "\n", encoding="utf-8")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(rows))
    assert texts(f"jsonl:{tmp_path}/*.jsonl*") == ["one", "zwei ü", "2020-01-01"] * 2


def test_parquet_reads_every_kind_of_text_column(tmp_path: Path) -> None:
    words = pa.array(["uno", "dos", "uno"])
    write_parquet(tmp_path / "a.parquet", {"text": words}, row_group_size=2)
    write_parquet(tmp_path / "b.parquet", {"text": words.cast(pa.large_string())})
    write_parquet(tmp_path / "c.parquet", {"text": words.dictionary_encode()})
    assert texts(f"parquet:{tmp_path}/*.parquet") == ["uno", "dos", "uno"] * 3


def test_progress_ends_at_the_size_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "b.txt").write_text("more")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write('{"text": "one"}\n{"text": "two"}')
    write_parquet(tmp_path / "a.parquet", {"text": ["a", "b", "c"]})
    for name in ("text:*.txt", "jsonl:*.gz", "parquet:*.parquet"):
        kind, pattern = name.split(":")
        source = open_source(f"{kind}:{tmp_path}/{pattern}", "error")
        rows = source.rows([Column("text", str)])
        assert [row.done for row in rows][-1] == source.size > 0


def test_a_folder_saved_by_datasets_is_read_by_split(tmp_path: Path) -> None:
    import datasets

    train = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "n": [1, 2, 3]})
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": train, "test": train.select([1])}).save_to_disk(tmp_path / "two")
    assert texts(f"hf:{tmp_path}/one") == ["a", "b", "c"]
    assert texts(f"hf:{tmp_path}/two") == ["a", "b", "c"]
    assert texts(f"hf:{tmp_path}/two:test") == ["b"]
    assert open_source(f"hf:{tmp_path}/two:test", "error").size == 1
    with pytest.raises(UserError, match=r"no split 'tset'; splits: train, test.*mean 'test'"):
        texts(f"hf:{tmp_path}/two:tset")
    with pytest.raises(UserError, match=r"the folder has no splits; drop ':test'"):
        texts(f"hf:{tmp_path}/one:test")
    with pytest.raises(UserError, match=r"no column 'txt'; columns: text, n.*mean 'text'"):
        texts(f"hf:{tmp_path}/one", column="txt")
    with pytest.raises(UserError, match=r"column 'n' holds int64, not text"):
        texts(f"hf:{tmp_path}/one", column="n")


def test_a_folder_that_datasets_did_not_save_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with pytest.raises(UserError, match=r"plain holds no dataset saved by datasets.save_to_disk"):
        texts(f"hf:{tmp_path}/plain")


def test_a_hub_dataset_that_cannot_be_had_names_what_was_asked_for() -> None:
    with pytest.raises(UserError, match=r"no dataset 'nobody/nothing', configuration small, split"):
        texts("hf:nobody/nothing/small:validation")


@pytest.mark.parametrize("name", ["hf:a/b/c/d", "hf:../secrets", "hf:/no/such/folder"])
def test_a_wrong_hub_name_is_refused_without_asking_the_hub(name: str) -> None:
    with pytest.raises(UserError, match=r"no such folder, and not the name of a dataset; allowed"):
        open_source(name, "error")


def test_builtin_python_is_the_standard_library_in_a_fixed_fair_order() -> None:
    source = open_source("builtin:python", "error")
    files = source.files  # type: ignore[attr-defined]
    root = Path(sysconfig.get_path("stdlib")).resolve()
    names = [file.path.relative_to(root).as_posix() for file in files]
    assert "argparse.py" in names
    assert "json/decoder.py" in names
    assert not any("site-packages" in name or "dist-packages" in name for name in names)
    assert names == [
        file.path.relative_to(root).as_posix()
        for file in open_source("builtin:python", "error").files  # type: ignore[attr-defined]
    ]
    in_folders = [("/" in name) for name in names]
    tail = in_folders[-len(names) // 5 :]
    assert abs(sum(tail) / len(tail) - sum(in_folders) / len(names)) < 0.1


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    name = f"text:{tmp_path}/*.txt"
    first = open_source(name, "error").fingerprint()
    assert open_source(name, "error").fingerprint() == first
    os.utime(file, ns=(1, 1))
    touched = open_source(name, "error").fingerprint()
    (tmp_path / "b.txt").write_text("two")
    assert len({first, touched, open_source(name, "error").fingerprint()}) == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("txt:a", r"'txt:a': allowed are builtin:python, text:GLOB, .* Did you mean 'text'\?"),
        ("corpus", r"'corpus': allowed are builtin:python, text:GLOB, jsonl:GLOB"),
        ("text:", r"'text:': allowed are"),
        ("builtin:pyton", r"allowed is builtin:python. Did you mean 'python'\?"),
        ("text:a.tx", r"no such file in .* Did you mean 'a.txt'\?"),
        ("text:nowhere/a.txt", r"no such file in .*nowhere\."),
        ("text:*.md", r"'text:\*.md': the pattern matches no file \(working directory "),
        ("text:folder", r"folder is a folder; name its files, as in text:folder/\*\*/\*.txt"),
    ],
)
def test_a_wrong_source_says_what_is_allowed(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        open_source(source, "error")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b'{"text": "a"}\n{"body": "b", "id": 1}', r"line 2: no column 'text'; columns: body, id."),
        (b'{"txt": "b"}', r"line 1: no column 'text'; columns: txt. .* Did you mean 'txt'\?"),
        (b'{"text": "a"}\n\n{"text": null}', r"line 3: column 'text' is null, not text"),
        (b'{"text": 5}', r"line 1: column 'text' is a number, not text"),
        (b'{"text": ["a"]}', r"line 1: column 'text' is a list, not text"),
        (b'{"text": "a"}\n[1]', r"line 2: a list, not an object with a column 'text'"),
        (b'{"text": "a"', r"line 1 is not JSON: .* at character 12"),
        (b'{\n "text": "a"\n}', r"line 1 is not JSON: .*its end\. A row is one line; .* jq -c \."),
        (b'{"text": "a"}{"text": "b"}', r"line 1 is not JSON: Extra data .* share lines, this "),
        (b'{"text": ' + b"1" * 5000 + b"}", r"line 1 is not JSON: an integer has more than 4,300"),
        (b'{"text": ' + b"[" * 99999, r"line 1 is not JSON: it is nested too deeply"),
        (b'{"text": "a\xff"}', r"line 1: byte 0xff at offset 11 is not UTF-8. .*error, replace"),
        (b'{"text": "a\\ud800"}', r"line 1: byte 0xed at offset 1 is not UTF-8"),
    ],
)
def test_a_wrong_line_of_jsonl_is_named(lines: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines)
    with pytest.raises(UserError, match=rf"a\.jsonl, {message}"):
        texts(f"jsonl:{tmp_path}/a.jsonl")


def test_a_wrong_row_of_parquet_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write_parquet(file, {"text": ["a", "b", None, "d"], "n": [1, 2, 3, 4]}, row_group_size=1)
    with pytest.raises(UserError, match=r"a\.parquet, row 3: column 'text' is null, not text"):
        texts(f"parquet:{file}")
    with pytest.raises(UserError, match=r"a\.parquet: no column 'body'; columns: text, n\."):
        texts(f"parquet:{file}", column="body")
    with pytest.raises(UserError, match=r"a\.parquet: column 'n' holds int64, not text"):
        texts(f"parquet:{file}", column="n")
    not_utf8 = pa.array([b"ok", b"abc\xe9"]).view(pa.string())
    write_parquet(file, {"text": not_utf8})
    with pytest.raises(UserError, match=r"a\.parquet, row 2: byte 0xe9 at offset 3 is not UTF-8"):
        texts(f"parquet:{file}")
    assert texts(f"parquet:{file}", invalid_utf8="skip") == ["ok", None]


def test_bytes_that_are_not_utf8_follow_the_policy(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9!")
    source = f"text:{tmp_path}/*.txt"
    message = (
        r"b\.txt: byte 0xe9 at offset 3 is not UTF-8. data.invalid_utf8 is 'error'; allowed: "
        r"error, replace \(with U\+FFFD\), skip \(the document\)"
    )
    with pytest.raises(UserError, match=message):
        texts(source)
    assert texts(source, invalid_utf8="replace") == ["good", "caf\ufffd!"]
    assert texts(source, invalid_utf8="skip") == ["good", None]


@pytest.mark.parametrize("kind", ["jsonl", "array", "parquet", "hf"])
def test_null_and_missing_text_follow_the_policy(kind: str, tmp_path: Path) -> None:
    import datasets

    rows = [{"text": "a", "n": 1}, {"text": None, "n": 2}, {"text": "c", "n": 3}]
    source, place = f"{kind}:{tmp_path}/rows", f"{tmp_path}/rows, row 2"
    match kind:
        case "jsonl":
            lines = [*map(json.dumps, rows), '{"n": 4}']
            (tmp_path / "rows").write_text("\n".join(lines))
            place = f"{tmp_path}/rows, line 2"
        case "array":
            (tmp_path / "rows").write_text(json.dumps([*rows, {"n": 4}]))
            source = f"jsonl:{tmp_path}/rows"
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows")
        case "hf":
            datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "rows")
            place = f"{source}, row 2"
    found = list(open_source(source, "error", "skip").rows([Column("text", str)]))
    assert [row.values for row in found[:3]] == [("a",), None, ("c",)]
    assert [row.left_out for row in found] == [None, "missing", None, "missing"][: len(found)]
    message = f"{place}: column 'text' is null, not text; fix or remove the row, or skip all such"
    with pytest.raises(UserError, match=re.escape(message)):
        texts(source)


def test_a_column_of_nothing_but_null_is_missing_text(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"text": pa.nulls(2)})
    with pytest.raises(UserError, match=r"column 'text' holds null, not text"):
        texts(f"parquet:{tmp_path}/a.parquet")
    assert texts(f"parquet:{tmp_path}/a.parquet", missing_text="skip") == [None, None]


def test_truncated_gzip_is_named(tmp_path: Path) -> None:
    rows = "\n".join(json.dumps({"text": os.urandom(20).hex()}) for _ in range(500))
    whole = gzip.compress(rows.encode())
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: truncated or damaged gzip after line \d+"):
        texts(f"jsonl:{file}")
    file.write_bytes(rows.encode())
    with pytest.raises(UserError, match=r"damaged gzip \(it does not begin as gzip does\); copy"):
        texts(f"jsonl:{file}")


def test_truncated_parquet_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write_parquet(file, {"text": [os.urandom(20).hex() for _ in range(500)]})
    whole = file.read_bytes()
    damaged = whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :]
    for content in (whole[: len(whole) // 2], b"", damaged):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.parquet: truncated or damaged parquet \("):
            texts(f"parquet:{file}")


def test_a_row_group_is_not_held_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write_parquet(file, {"text": [os.urandom(1000).hex() for _ in range(20_000)]})
    assert file.stat().st_size > 35_000_000
    before, most = pa.total_allocated_bytes(), 0
    for row in open_source(f"parquet:{file}", "error").rows([Column("text", str)]):
        most = max(most, pa.total_allocated_bytes() - before)
        assert row.values
    assert most < 16_000_000
