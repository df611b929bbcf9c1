"""Stores are whole or made anew: real processes are killed, and started at the same time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxformer.config import DataConfig
from jaxformer.data import prepare
from jaxformer.data.store import DOCUMENTS, MANIFEST, TOKENS, TokenStore, token_dtype
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import Tokenizer, load_tokenizer
from jaxformer.errors import UserError

PREPARE = """
import sys
from jaxformer.config import DataConfig
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer
data = DataConfig(source=sys.argv[1], cache_dir=sys.argv[2])
print("ready", flush=True)
store = Stores(data, load_tokenizer("bytes")).open(data.sources[0])
print(store.manifest.files["tokens.bin"].sha256)
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
    pairs = zip(store.offsets[:-1], store.offsets[1:], strict=True)
    return [tokenizer.decode(store.tokens[a + 1 : b - 1]) for a, b in pairs]


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that stores were built for."""
    built: list[Path] = []
    build = prepare._build
    monkeypatch.setattr(
        prepare, "_build", lambda recipe: (built.append(recipe.path), build(recipe))
    )
    return built


def test_a_store_holds_every_document_between_begin_and_end(make_data, write_texts) -> None:
    texts = ["one", "zwei ü", "", "drei"]
    store = open_store(make_data(source=write_texts(texts)))
    assert documents_of(store) == ["one", "zwei ü", "drei"]
    assert store.tokens[store.offsets[:-1]].tolist() == [256] * 3
    assert store.tokens[store.offsets[1:] - 1].tolist() == [256] * 3
    manifest = store.manifest
    assert (manifest.documents, manifest.empty_documents, manifest.skipped_documents) == (3, 1, 0)
    assert manifest.tokens == 3 + 7 + 4 + 2 * 3
    assert manifest.text_bytes == 3 + 7 + 4
    assert store.text_bytes.tolist() == [0, 3, 10, 14]


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
        assert (store.path / TOKENS).stat().st_size == 2 * store.manifest.tokens
        ids = [bpe.encode("the cat"), bpe.encode("the dog")]
    assert store.tokens.tolist() == [0, *ids[0].tolist(), 0, 0, *ids[1].tolist(), 0]


def test_a_store_is_made_once(make_data, write_texts, builds: list[Path]) -> None:
    data = make_data(source=write_texts(["text"]))
    first, second = open_store(data), open_store(data)
    assert len(builds) == 1
    assert first.manifest == second.manifest


def test_another_column_tokenizer_or_policy_has_another_store(make_data, tmp_path, bpe) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "text", "body": "text"}\n')
    source = f"jsonl:{tmp_path}/rows.jsonl"
    paths = {
        open_store(make_data(source=source)).path,
        open_store(make_data(source=source), bpe).path,
        open_store(make_data(source=source, column="body")).path,
        open_store(make_data(source=source, invalid_utf8="skip")).path,
    }
    assert len(paths) == 4


def test_a_store_follows_its_source(make_data, write_texts, tmp_path, capfd) -> None:
    data = make_data(source=write_texts(["one"]))
    open_store(data)
    (tmp_path / "texts" / "0001.txt").write_text("two")
    assert documents_of(open_store(data)) == ["one", "two"]
    assert "made again because the source's files have changed" in capfd.readouterr().err


def truncate(path: Path) -> None:
    os.truncate(path / TOKENS, 4)


def flip(path: Path) -> None:
    content = bytearray((path / TOKENS).read_bytes())
    content[2] ^= 1
    (path / TOKENS).write_bytes(content)


def remove_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()


def halve_manifest(path: Path) -> None:
    (path / MANIFEST).write_bytes((path / MANIFEST).read_bytes()[:300])


def garble_manifest(path: Path) -> None:
    (path / MANIFEST).write_bytes(b"\xff\xfe")


def remove_offsets(path: Path) -> None:
    (path / DOCUMENTS).unlink()


def newer_format(path: Path) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, "format": 3}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "tokens.bin has 4 bytes"),
        (flip, "tokens.bin does not have the hash of the manifest"),
        (remove_manifest, "it has no manifest"),
        (halve_manifest, "its manifest is not one of this version"),
        (garble_manifest, "its manifest is damaged"),
        (remove_offsets, "documents.bin is missing"),
        (newer_format, "its format is 3, not 2"),
    ],
)
def test_a_damaged_store_is_made_again_and_the_reason_said(
    make_data, write_texts, capfd, builds, damage, reason: str
) -> None:
    data = make_data(source=write_texts(["one", "two"]))
    damage(open_store(data).path)
    assert documents_of(open_store(data)) == ["one", "two"]
    assert len(builds) == 2
    assert f"made again because {reason} (" in capfd.readouterr().err


def test_a_killed_preparation_is_cleared_and_made_anew(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", 80_000)
    cache = tmp_path / "cache"
    process = start(source, cache)
    try:
        while not any(tokens.stat().st_size for tokens in cache.glob("*.building/tokens.bin")):
            assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [".building"]

    store = open_store(DataConfig(source=source, cache_dir=str(cache)))
    clean = open_store(DataConfig(source=source, cache_dir=str(tmp_path / "clean")))
    assert store.manifest == clean.manifest
    assert store.manifest.documents == 80_000
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [""]


@pytest.mark.parametrize("suffix", [".building", ".replaced"])
def test_what_a_process_killed_between_two_renames_left_is_not_used(
    make_data, write_texts, suffix: str
) -> None:
    data = make_data(source=write_texts(["one"]))
    path = open_store(data).path
    left = path.with_name(path.name + suffix)
    path.rename(left)
    (left / TOKENS).write_bytes(b"")
    assert documents_of(open_store(data)) == ["one"]
    assert not left.exists()


def test_processes_that_prepare_the_same_store_at_once_all_end_well(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", 20_000)
    processes = [start(source, tmp_path / "cache") for _ in range(3)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], results
    assert len({out.split()[-1] for out, _ in results}) == 1
    assert sum("token store of" in err for _, err in results) == 1
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_a_store_that_is_read_survives_its_replacement(make_data, write_texts, tmp_path) -> None:
    data = make_data(source=write_texts(["one"]))
    old = open_store(data)
    (tmp_path / "texts" / "0000.txt").write_text("other")
    assert documents_of(open_store(data)) == ["other"]
    assert documents_of(old) == ["one"]


def test_a_failed_preparation_leaves_nothing(make_data, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": null}')
    data = make_data(source=f"jsonl:{tmp_path}/a.jsonl")
    with pytest.raises(UserError, match=r"line 2: column 'text' is null"):
        open_store(data)
    assert not [path for path in Path(data.cache_dir).iterdir() if path.is_dir()]


def test_a_source_that_changes_while_it_is_read_is_refused(
    make_data, write_texts, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(source=write_texts(["one", "two"]))
    add = prepare._Writer.add

    def add_and_touch(writer, batch) -> None:
        add(writer, batch)
        (tmp_path / "texts" / "0000.txt").write_text("changed")

    monkeypatch.setattr(prepare._Writer, "add", add_and_touch)
    with pytest.raises(UserError, match=r"changed while it was read; run again"):
        open_store(data)


def test_a_source_without_text_says_what_was_left_out(make_data, write_texts, tmp_path) -> None:
    data = make_data(source=write_texts(["", ""]), invalid_utf8="skip")
    (tmp_path / "texts" / "0002.txt").write_bytes(b"\xff")
    message = r"holds no text: 2 documents are empty, 1 were skipped as not UTF-8 \(data.invalid"
    with pytest.raises(UserError, match=message):
        open_store(data)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"holds no text: 0 documents are empty, 0 were skipped"):
        open_store(make_data(source=f"jsonl:{tmp_path}/empty.jsonl"))


def test_rows_with_null_or_missing_text_are_skipped_and_counted(make_data, tmp_path, capfd) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n{"text": null}\n{"n": 1}\n{"text": ""}\n')
    store = open_store(make_data(source=f"jsonl:{file}", missing_text="skip"))
    counts = store.manifest.documents, store.manifest.empty_documents
    assert (*counts, store.manifest.missing_documents, store.manifest.skipped_documents) == (
        1,
        1,
        2,
        0,
    )
    said = "1 documents, 1 empty ones left out, 2 that are null or missing skipped, 3 tokens"
    assert said in capfd.readouterr().err
    file.write_text('{"n": 1}\n')
    with pytest.raises(UserError, match=r"no text: .*, 1 as null or missing \(data.missing_text\)"):
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
    monkeypatch.setattr(prepare, "_locked", None)
    assert documents_of(open_store(data)) == ["one"]


def test_the_built_in_corpus_is_whole(make_data, capfd) -> None:
    store = open_store(make_data(source="builtin:python"))
    manifest = store.manifest
    assert manifest.documents > 500
    assert manifest.text_bytes > 5_000_000
    assert manifest.tokens == manifest.text_bytes + 2 * manifest.documents
    err = capfd.readouterr().err
    assert f"{manifest.empty_documents:,} empty ones left out" in err
