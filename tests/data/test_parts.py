"""Stores made in parts are those made at once; what is missing or altered is named, and mended."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from jaxformer.cli import main
from jaxformer.config import DataConfig
from jaxformer.data import store as store_module
from jaxformer.data.packing import PackedRows
from jaxformer.data.plans import plan_of
from jaxformer.data.prepare import write_units
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError
from tests.data.contents import offsets_of, tokens_of
from tests.data.test_store import documents_of, open_store, write_rows

SHARD = "--shard-bytes=20000"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the stores in a folder, but for locks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "configs").mkdir()
    write_rows(tmp_path / "a.jsonl", 700)
    write_rows(tmp_path / "b.jsonl", 90)
    return f"jsonl:{tmp_path}/*.jsonl"


@pytest.fixture
def prepare(source: str, tmp_path: Path):
    """Runs `data prepare` with these words; → its exit code."""

    def run(out: Path | str, *words: str) -> int:
        data = [f"data.source={source}", f"data.cache_dir={tmp_path / 'cache'}"]
        words = ("--out", str(out), SHARD, *words)
        return main(["data", "prepare", "configs/quickstart.yaml", *data, *words])

    return run


def test_parts_in_any_number_and_order_make_the_same_files(prepare, tmp_path, capfd) -> None:
    assert prepare(tmp_path / "one", "--parts", "1") == 0
    assert prepare(tmp_path / "four", "--parts", "4") == 0
    for part in (6, 0, 3, 2, 5, 4, 1):
        assert prepare(tmp_path / "seven", "--parts", "7", "--part", str(part)) == 0
    assert "part 6 of 7 is done: 0 of the 4 units" in capfd.readouterr().err
    assert prepare(tmp_path / "seven", "--merge") == 0
    said = capfd.readouterr().err
    assert "790 documents" in said and f"data.store_dir={tmp_path / 'seven'}" in said
    one = contents(tmp_path / "one")
    assert len([name for name in one if name.endswith(".tokens")]) > 6
    assert one == contents(tmp_path / "four") == contents(tmp_path / "seven")


def test_a_store_in_shards_holds_the_tokens_of_one_in_a_piece(prepare, source, tmp_path) -> None:
    assert prepare(tmp_path / "out", "--parts", "2") == 0
    data = {"source": source, "validation_fraction": 0.3, "sequence_length": 33}
    whole, cut = (
        DataConfig.model_validate(data | {"cache_dir": str(tmp_path / "cache")} | place)
        for place in ({}, {"store_dir": str(tmp_path / "out")})
    )
    tokenizer = load_tokenizer("bytes")
    stores = [Stores(each, tokenizer) for each in (whole, cut)]
    one, many = (each.open(whole.sources[0]) for each in stores)
    assert (len(one.manifest.shards), len(many.manifest.shards)) == (1, 7)
    np.testing.assert_array_equal(tokens_of(one), tokens_of(many))
    np.testing.assert_array_equal(offsets_of(one), offsets_of(many))
    assert documents_of(many)[699:701] == [f"document 699 {'x' * 69}", "document 0 "]
    for ours, theirs in ((s.training[0], s.validation[0]) for s in stores[1:]):
        assert isinstance(ours, PackedRows) and isinstance(theirs, PackedRows)
    for part in ("training", "validation"):
        [first], [second] = (getattr(each, part) for each in stores)
        assert first.text_bytes(tokenizer) == second.text_bytes(tokenizer)
        assert first.loss_tokens() == second.loss_tokens()
        rows = np.arange(len(first))
        for array, other in zip(first.pack(rows), second.pack(rows), strict=True):
            np.testing.assert_array_equal(array, other)


def test_a_prepared_store_needs_no_source_and_the_tokenizer_it_was_made_with(
    prepare, tmp_path, capfd
) -> None:
    assert prepare(tmp_path / "out", "--parts", "2") == 0
    [index] = (tmp_path / "out").glob("*/index.json")
    for file in tmp_path.glob("*.jsonl"):
        file.unlink()
    data = DataConfig(source=f"store:{index.parent}", cache_dir=str(tmp_path / "cache"))
    assert len(documents_of(open_store(data))) == 790
    message = "holds tokens of the tokenizer 'bytes', and data.tokenizer is 'ids:300', another one"
    with pytest.raises(UserError, match=message):
        open_store(data, load_tokenizer("ids:300"))
    index.unlink()
    with pytest.raises(UserError, match="it has no index; give the folder that data prepare named"):
        open_store(data)


def test_a_merge_names_the_units_that_are_missing_and_what_was_made_beside_them(
    prepare, tmp_path, capfd
) -> None:
    out = tmp_path / "out"
    assert prepare(out, "--parts", "3", "--part", "0") == 0
    assert prepare(out, "--parts", "3", "--part", "1", "data.tokenizer=ids:999") == 2
    assert prepare(out, "--parts", "3", "--part", "1", "data.missing_text=skip") == 0
    assert prepare(out, "--merge") == 2
    said = capfd.readouterr().err
    assert "2 of 4 units are not there (1, 2)" in said
    assert "also holds" in said and "of another source, another tokenizer or other options" in said
    assert prepare(out, "--part", "3", "--parts", "3") == 2
    assert "--part is 3 and --parts is 3; give --parts N, and as --part 0 to N - 1" in (
        capfd.readouterr().err
    )


def test_shards_of_another_size_are_refused_and_kept(prepare, tmp_path, capfd) -> None:
    assert prepare(tmp_path / "out", "--parts", "2") == 0
    [index] = (tmp_path / "out").glob("*/index.json")
    index.unlink()
    before = contents(tmp_path / "out")
    for words in (["--merge"], ["--parts", "1"]):
        assert prepare(tmp_path / "out", *words, "--shard-bytes=9000") == 2
        assert "00000-000 was made with another --shard-bytes" in capfd.readouterr().err
    assert contents(tmp_path / "out") == before
    assert prepare(tmp_path / "out", "--merge") == 0
    assert prepare(tmp_path / "out", "--parts", "1", "--shard-bytes=9000") == 0
    assert "is whole already" in capfd.readouterr().err
    assert len(json.loads(index.read_text())["shards"]) == 7


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-300])


def alter(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def times_of_other_units(folder: Path) -> list[int]:
    files = sorted(folder.glob("*.tokens"))
    return [file.stat().st_mtime_ns for file in files if not file.name.startswith("00001-")]


@pytest.mark.parametrize(
    ("damage", "fault"),
    [(cut, "is cut short"), (alter, "has been altered"), (Path.unlink, "is missing")],
)
def test_a_shard_of_a_large_store_that_is_damaged_is_named_and_alone_made_again(
    prepare, source, tmp_path, monkeypatch, capfd, damage, fault
) -> None:
    monkeypatch.setattr(store_module, "HASHED_ON_OPENING", 0)
    assert prepare(tmp_path / "out", "--parts", "1") == 0
    keys = {"cache_dir": str(tmp_path / "cache"), "store_dir": str(tmp_path / "out")}
    data = DataConfig.model_validate({"source": source, **keys})
    store = open_store(data)
    before = contents(store.place.path)
    damage(store.place.path / "00001-000.tokens")
    with pytest.raises(UserError, match=f"00001-000.tokens {fault}. Prepare the store again"):
        tokens_of(store)
    made = times_of_other_units(store.place.path)
    assert prepare(tmp_path / "out", "--merge") == 2
    assert "1 of 4 units are not there (1)" in capfd.readouterr().err
    assert prepare(tmp_path / "out", "--parts", "1") == 0
    assert contents(store.place.path) == before
    assert made == times_of_other_units(store.place.path)


def test_units_are_made_in_several_processes(source, tmp_path, monkeypatch) -> None:
    """Whatever their number, with the errors of rows as they are."""
    monkeypatch.setattr("jaxformer.data.prepare.LEAST_PER_WORKER", 1)
    data = DataConfig(source=source, cache_dir=str(tmp_path / "cache"))
    plan = plan_of(data.sources[0], data, load_tokenizer("bytes"), 20_000)
    write_units(plan, range(len(plan.units)), cores=3)
    (tmp_path / "c.jsonl").write_text('{"text": 1}\n')
    plan = plan_of(data.sources[0], data, load_tokenizer("bytes"), 20_000)
    with pytest.raises(UserError, match=r"c.jsonl, line 1: column 'text' is a number, not text"):
        write_units(plan, range(len(plan.units)), cores=2)


def test_shards_of_a_source_that_changed_meanwhile_are_not_kept(tmp_path, monkeypatch) -> None:
    """Though the source be as it was later on, to the time of its file."""
    for name in ("0", "1"):
        (tmp_path / f"{name}.txt").write_text("as it was")
    state = (tmp_path / "1.txt").stat()
    data = DataConfig(source=f"text:{tmp_path}/*.txt", cache_dir=str(tmp_path / "cache"))
    tokenizer = load_tokenizer("bytes")
    plan = plan_of(data.sources[0], data, tokenizer, 1)
    assert len(plan.units) > 2 and plan.key
    (tmp_path / "1.txt").write_text("otherwise")
    with pytest.raises(UserError, match="changed while it was read; run again"):
        write_units(plan, range(len(plan.units)))
    (tmp_path / "1.txt").write_text("as it was")
    os.utime(tmp_path / "1.txt", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert documents_of(open_store(data)) == ["as it was"] * 2


def test_options_that_a_prepared_store_was_made_without_are_refused(prepare, tmp_path) -> None:
    assert prepare(tmp_path / "out", "--parts", "1") == 0
    [index] = (tmp_path / "out").glob("*/index.json")
    data = {"source": f"store:{index.parent}", "cache_dir": str(tmp_path / "cache")}
    for name, value in {"deduplicate": {}, "min_chars": 3}.items():
        with pytest.raises(UserError, match=f"data.{name} is given, .* prepared without"):
            open_store(DataConfig.model_validate(data | {name: value}))


def test_a_place_is_taken_as_it_is_written(prepare, tmp_path, capfd) -> None:
    assert prepare(tmp_path / "out #2: [a]", "--parts", "1") == 0
    assert len(list((tmp_path / "out #2: [a]").glob("*/index.json"))) == 1
    assert prepare("", "--parts", "1") == 2
    assert prepare("gs://", "--parts", "1") == 2
    assert "'gs://' names no place; write gs://BUCKET/FOLDER" in capfd.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float16"},
        {"tokens": 2**40},
        {"tokens": -5},
        {"documents": 0},
        {"shards": []},
        {"vocab_size": 5},
        {"largest_id": 10**9},
    ],
)
def test_an_index_that_does_not_agree_with_itself_is_refused(prepare, tmp_path, change) -> None:
    assert prepare(tmp_path / "out", "--parts", "1") == 0
    [index] = (tmp_path / "out").glob("*/index.json")
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with pytest.raises(UserError, match="its index is not one of this version"):
        open_store(DataConfig(source=f"store:{index.parent}", cache_dir=str(tmp_path / "cache")))


def test_a_shard_outside_of_its_store_is_refused(prepare, tmp_path) -> None:
    assert prepare(tmp_path / "out", "--parts", "1") == 0
    [index] = (tmp_path / "out").glob("*/index.json")
    text = index.read_text()
    for name in ("../00000-000", "/etc/00000-000"):
        index.write_text(text.replace("00000-000", name))
        with pytest.raises(UserError, match="its index is not one of this version"):
            open_store(DataConfig(source=f"store:{index.parent}"))
