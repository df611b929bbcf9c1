"""Stores are whole or made anew: real processes are killed, and started at the same time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxformer.config import DataConfig
from jaxformer.data import plans, prepare
from jaxformer.data.manifest import INDEX, token_dtype
from jaxformer.data.store import TokenStore
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import Tokenizer, load_tokenizer
from jaxformer.errors import UserError
from tests.data.contents import offsets_of, text_bytes_of, tokens_of

TOKENS = "00000-000.tokens"

PREPARE = """
import sys
from jaxformer.config import DataConfig
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer
data = DataConfig(source=sys.argv[1], cache_dir=sys.argv[2])
print("ready", flush=True)
store = Stores(data, load_tokenizer("bytes")).open(data.sources[0])
print(store.manifest.sha256)
"""


def start(source: str, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREPARE, source, str(cache)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def open_store(data: DataConfig, tokenizer: Tokenizer | None = None) -> TokenStore:
    return Stores(data, tokenizer or load_tokenizer("bytes")).open(data.sources[0])


def write_rows(file: Path, count: int) -> str:
    with file.open("w", encoding="utf-8") as handle:
        for number in range(count):
            handle.write(json.dumps({"text": f"document {number} " + "x" * (number % 90)}) + "\n")
    return f"jsonl:{file}"


def documents_of(store: TokenStore) -> list[str]:
    tokenizer = load_tokenizer("bytes")
    pairs = zip(offsets_of(store)[:-1], offsets_of(store)[1:], strict=True)
    return [tokenizer.decode(store.tokens[a + 1 : b - 1]) for a, b in pairs]


def test_a_store_holds_every_document_between_begin_and_end(make_data, write_texts) -> None:
    texts = ["one", "zwei ü", "", "drei"]
    store = open_store(make_data(source=write_texts(texts)))
    assert documents_of(store) == ["one", "zwei ü", "drei"]
    assert tokens_of(store)[offsets_of(store)[:-1]].tolist() == [256] * 3
    assert tokens_of(store)[offsets_of(store)[1:] - 1].tolist() == [256] * 3
    manifest = store.manifest
    assert (manifest.documents, manifest.left_out) == (3, {"empty": 1})
    assert manifest.tokens == 3 + 7 + 4 + 2 * 3
    assert manifest.text_bytes == 3 + 7 + 4
    assert text_bytes_of(store) == [0, 3, 10, 14]


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [
        (256, np.uint8),
        (257, np.uint16),
        (65536, np.uint16),
        (65537, np.uint32),
        (2**32, np.uint32),
    ],
)
def test_tokens_take_the_smallest_integer_type(vocab_size: int, dtype: type) -> None:
    assert token_dtype(vocab_size) == dtype


def test_files_have_the_type_and_hashes_of_the_manifest(make_data, write_texts, bpe) -> None:
    source = write_texts(["the cat", "the dog"])
    for tokenizer in (load_tokenizer("bytes"), bpe):
        store = open_store(make_data(source=source), tokenizer)
        assert store.manifest.dtype == "uint16"
        assert (store.place / TOKENS).stored().bytes == 128 * 2 + 128 // 8 + 4
        ids = [bpe.encode("the cat"), bpe.encode("the dog")]
    assert tokens_of(store).tolist() == [0, *ids[0].tolist(), 0, 0, *ids[1].tolist(), 0]


def test_a_store_is_made_once(make_data, write_texts, capfd) -> None:
    data = make_data(source=write_texts(["text"]))
    first, second = open_store(data), open_store(data)
    assert capfd.readouterr().err.count("token store of") == 1
    assert first.manifest == second.manifest


def test_another_column_tokenizer_or_policy_has_another_store(make_data, tmp_path, bpe) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "text", "body": "text"}\n')
    source = f"jsonl:{tmp_path}/rows.jsonl"
    paths = {
        open_store(make_data(source=source)).place,
        open_store(make_data(source=source), bpe).place,
        open_store(make_data(source=source, column="body")).place,
        open_store(make_data(source=source, invalid_utf8="skip")).place,
    }
    assert len(paths) == 4


def test_a_store_follows_its_source(make_data, write_texts, tmp_path) -> None:
    data = make_data(source=write_texts(["one"]))
    old = open_store(data)
    (tmp_path / "texts" / "0001.txt").write_text("two")
    assert documents_of(open_store(data)) == ["one", "two"]
    assert documents_of(old) == ["one"]  # a run that reads it goes on


def truncate(path: Path) -> None:
    os.truncate(path / TOKENS, 4)


def flip(path: Path) -> None:
    content = bytearray((path / TOKENS).read_bytes())
    content[2] ^= 1
    (path / TOKENS).write_bytes(content)


def remove_index(path: Path) -> None:
    (path / INDEX).unlink()


def halve_index(path: Path) -> None:
    (path / INDEX).write_bytes((path / INDEX).read_bytes()[:300])


def lose_a_key(path: Path) -> None:
    index = json.loads((path / INDEX).read_text())
    del index["tokens"]
    (path / INDEX).write_text(json.dumps(index))


def garble_index(path: Path) -> None:
    (path / INDEX).write_bytes(b"\xff\xfe")


def remove_offsets(path: Path) -> None:
    (path / "00000-000.documents").unlink()


def newer_format(path: Path) -> None:
    index = json.loads((path / INDEX).read_text())
    (path / INDEX).write_text(json.dumps({**index, "format": 4}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "00000-000.tokens has 4 bytes, not 276"),
        (flip, "00000-000.tokens does not have the hash of the index"),
        (halve_index, "its index is damaged"),
        (lose_a_key, "its index is not one of this version"),
        (garble_index, "its index is damaged"),
        (remove_offsets, "00000-000.documents is missing"),
        (newer_format, "a newer jaxformer made it: its format is 4, not 3"),
        (remove_index, None),
    ],
)
def test_a_damaged_store_is_made_again_and_the_reason_said(
    make_data, write_texts, capfd, damage, reason: str | None
) -> None:
    data = make_data(source=write_texts(["one", "two"]))
    first = open_store(data)
    damage(first.place.path)
    capfd.readouterr()
    again = open_store(data)
    assert documents_of(again) == ["one", "two"]
    assert again.manifest == first.manifest
    said = capfd.readouterr().err
    assert "2 documents, 10 tokens" in said
    assert reason is None or f"made again because {reason} (" in said


def test_processes_that_prepare_the_same_store_at_once_all_end_well(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", 20_000)
    processes = [start(source, tmp_path / "cache") for _ in range(3)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], results
    assert len({out.split()[-1] for out, _ in results}) == 1
    assert sum("token store of" in err for _, err in results) == 1
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_a_failed_preparation_leaves_nothing(make_data, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": null}')
    data = make_data(source=f"jsonl:{tmp_path}/a.jsonl")
    with pytest.raises(UserError, match=r"line 2: column 'text' is null"):
        open_store(data)
    assert not [
        each
        for each in Path(data.cache_dir).rglob("*")
        if each.is_file() and each.suffix != ".lock"
    ]


def test_a_source_that_changes_while_it_is_read_is_refused(
    make_data, write_texts, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(source=write_texts(["one", "two"]))
    write = plans.write_unit

    def write_and_touch(*arguments) -> None:
        write(*arguments)
        (tmp_path / "texts" / "0000.txt").write_text("changed")

    monkeypatch.setattr(plans, "write_unit", write_and_touch)
    with pytest.raises(UserError, match=r"changed while it was read; run again"):
        open_store(data)


def test_a_source_without_text_says_what_was_left_out(make_data, write_texts, tmp_path) -> None:
    data = make_data(source=write_texts(["", ""]), invalid_utf8="skip")
    (tmp_path / "texts" / "0002.txt").write_bytes(b"\xff")
    message = "holds no text: 2 documents are empty, 1 that are not UTF-8 skipped"
    with pytest.raises(UserError, match=message):
        open_store(data)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no text: 0 documents are empty$"):
        open_store(make_data(source=f"jsonl:{tmp_path}/empty.jsonl"))


def test_rows_with_null_or_missing_text_are_skipped_and_counted(make_data, tmp_path, capfd) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n{"text": null}\n{"n": 1}\n{"text": ""}\n')
    store = open_store(make_data(source=f"jsonl:{file}", missing_text="skip"))
    assert (store.manifest.documents, store.manifest.left_out) == (1, {"empty": 1, "missing": 2})
    said = "1 documents, 1 empty ones left out, 2 that are null or missing skipped, 3 tokens"
    assert said in capfd.readouterr().err
    file.write_text('{"n": 1}\n')
    with pytest.raises(UserError, match="no text: .*, 1 that are null or missing skipped"):
        open_store(make_data(source=f"jsonl:{file}", missing_text="skip"))
    with pytest.raises(UserError, match=r"line 1: no column 'text'; columns: n"):
        open_store(make_data(source=f"jsonl:{file}"))


def test_a_folder_that_cannot_be_written_is_named(make_data, write_texts, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    data = make_data(source=write_texts(["text"]), cache_dir=str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"data.cache_dir '.*file/cache' cannot be written: Not a "):
        open_store(data)


def test_a_whole_store_in_a_read_only_folder_is_used(make_data, write_texts, monkeypatch) -> None:
    data = make_data(source=write_texts(["one"]))
    open_store(data)
    monkeypatch.setattr(prepare, "locked", None)
    assert documents_of(open_store(data)) == ["one"]


def test_the_built_in_corpus_is_whole(make_data, capfd) -> None:
    store = open_store(make_data(source="builtin:python"))
    manifest = store.manifest
    assert manifest.documents > 500
    assert manifest.text_bytes > 5_000_000
    assert manifest.tokens == manifest.text_bytes + 2 * manifest.documents
    err = capfd.readouterr().err
    assert f"{manifest.left_out['empty']:,} empty ones left out" in err
