"""Datasets of the Hub, whose answers are made here from files in memory."""

import gzip
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxformer.data.sources import open_source
from jaxformer.errors import UserError
from jaxformer.storage import Place
from tests.data.hub_server import HubServer, hub_server
from tests.data.test_units import check_units, lines, read

COMMIT, LATER = "1" * 40, "2" * 40
TEXTS = [f"text {row}" for row in range(12)]


class Hub:
    """`datasets`, asked for one dataset of the Hub, gives these files by its own loader `kind`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kind = "parquet"
        self.commit = COMMIT
        self.options: dict[str, Any] = {}
        self.data_files: dict[str, list[str]] = {}
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.downloads: list[str | None] = []
        self._builder, self._load = datasets.load_dataset_builder, datasets.load_dataset

    def add(self, split: str, name: str, content: bytes) -> None:
        place = Place(f"memory://{self.folder.name}/{name}")
        place.write(content)
        (self.folder / name).write_bytes(content)  # `datasets` downloads nothing in a test
        self.data_files.setdefault(split, []).append(place.name)

    def builder(self, name: str, config: str | None = None, revision: str | None = None) -> Any:
        self.asked.append((name, config, revision))
        builder = self._builder(self.kind, data_files=self.data_files, **self._more)
        builder.hash = self.commit
        return builder

    def load(self, name: str, config: str | None, split: str, revision: str | None) -> Any:
        self.downloads.append(revision)
        files = [str(self.folder / Path(file).name) for file in self.data_files["train"]]
        return self._load(self.kind, data_files=files, split=split, **self._more)

    @property
    def _more(self) -> dict[str, Any]:
        return {"cache_dir": str(self.folder), **self.options}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset_builder", hub.builder)
    monkeypatch.setattr(datasets, "load_dataset", hub.load)
    return hub


def table(texts: list[str]) -> bytes:
    file = BytesIO()
    pq.write_table(pa.table({"text": texts}), file, row_group_size=2)
    return file.getvalue()


KINDS: dict[str, tuple[str, Callable[[list[str]], bytes]]] = {
    "parquet": (".parquet", table),
    "json": (".jsonl", lines),
    "json packed": (".json.gz", lambda texts: gzip.compress(lines(texts))),
    "text": (".txt", lambda texts: "".join(f"{text}\n" for text in texts).encode()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_a_known_kind_are_read_as_they_are_on_the_hub(kind: str, hub: Hub) -> None:
    end, write = KINDS[kind]
    hub.kind = kind.split()[0]
    for number in range(3):
        hub.add("train", f"{number}{end}", write(TEXTS[4 * number : 4 * number + 4]))
    hub.add("test", f"test{end}", write(["a test"]))
    source = open_source("hf:org/name/small", "error")
    assert read(source) == TEXTS
    assert source.size == sum(Place(name).stored().bytes for name in hub.data_files["train"])
    for target in (50, 10**9):
        check_units(source, target)
    assert read(open_source("hf:org/name:test", "error")) == ["a test"]
    assert set(hub.asked) == {("org/name", "small", None), ("org/name", None, None)}
    assert hub.downloads == []
    with pytest.raises(UserError, match=r"no split 'tset'; splits: train, test\. Did you mean 't"):
        read(open_source("hf:org/name:tset", "error"))


def test_a_revision_is_asked_for_and_part_of_the_identity(hub: Hub) -> None:
    hub.add("train", "a.parquet", table(TEXTS))
    names = {
        "hf:org/name": "hf:org/name:train",
        "hf:org/name/small@v2.0": "hf:org/name/small@v2.0:train",
        "hf:org/name@refs/pr/1:train": "hf:org/name@refs/pr/1:train",
    }
    for name, identity in names.items():
        source = open_source(name, "error")
        assert source.identity == identity
        assert read(source) == TEXTS
    assert [revision for _, _, revision in hub.asked] == [None, "v2.0", "refs/pr/1"]
    assert hub.asked[1][1] == "small"


def test_a_branch_that_moved_has_another_fingerprint(hub: Hub) -> None:
    hub.add("train", "a.parquet", table(TEXTS))
    first = open_source("hf:org/name", "error").fingerprint()
    assert open_source("hf:org/name", "error").fingerprint() == first
    hub.commit = LATER
    assert open_source("hf:org/name", "error").fingerprint() != first


def test_another_process_reads_the_same_commit_after_the_branch_moved(hub: Hub) -> None:
    hub.add("train", "a.parquet", table(TEXTS))
    source = open_source("hf:org/name", "error")
    sent = pickle.dumps(source)
    hub.commit = LATER
    received = pickle.loads(sent)  # noqa: S301
    assert (received.identity, received.fingerprint()) == (source.identity, source.fingerprint())
    assert read(received) == TEXTS
    assert [revision for _, _, revision in hub.asked] == [None, COMMIT]


def test_a_commit_is_known_without_the_hub(hub: Hub) -> None:
    first = open_source(f"hf:org/name@{COMMIT}", "error").fingerprint()
    assert open_source(f"hf:org/name@{LATER}", "error").fingerprint() != first
    assert hub.asked == []


@pytest.mark.parametrize("why", ["kind", "end", "option", "part of a split"])
def test_all_else_is_downloaded_at_the_commit(why: str, hub: Hub) -> None:
    name, expected = "hf:org/name", TEXTS
    match why:
        case "kind":
            hub.kind = "csv"
            hub.add("train", "a.csv", "\n".join(["text", *TEXTS]).encode())
        case "end":
            hub.kind = "json"
            hub.add("train", "a.json", json.dumps([{"text": text} for text in TEXTS]).encode())
        case "option":
            hub.kind, hub.options = "json", {"field": "rows"}
            rows = json.dumps({"rows": [{"text": text} for text in TEXTS]})
            hub.add("train", "a.jsonl", rows.encode())
        case _:
            name, expected = "hf:org/name:train[:50%]", TEXTS[:6]
            hub.add("train", "a.parquet", table(TEXTS))
    source = open_source(name, "error")
    assert read(source) == expected
    assert source.size == len(expected)
    assert hub.downloads == [COMMIT]
    check_units(source, 30)
    assert len(source.units(30)) > 1


@pytest.mark.parametrize("name", ["hf:a/b/c/d", "hf:a/b@", "hf:a@x y", "hf:a/b:", "hf:@main"])
def test_a_wrong_name_is_refused_without_asking(name: str, hub: Hub) -> None:
    with pytest.raises(UserError, match="allowed: hf:FOLDER, .*, then @REVISION, then :SPLIT"):
        open_source(name, "error")
    assert hub.asked == []


def test_a_hub_that_cannot_be_reached_says_how_to_do_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    source = open_source("hf:org/name@main", "error")
    message = r"no dataset 'org/name', .*, revision main \(no route\)\. .*with @COMMIT after the na"
    for action in (source.fingerprint, lambda: source.size):
        with pytest.raises(UserError, match=message):
            action()


READ = """
import json, sys
from jaxformer.data.rows import Column
from jaxformer.data.sources import open_source

for name in sys.argv[1:]:
    source = open_source(name, "error")
    parts = [
        [row.values[0] for row in source.rows([Column("text", str)], unit)]
        for unit in source.units(20_000)
    ]
    print("read", json.dumps([source.fingerprint(), source.size, parts]))
"""


FINGERPRINT = """
import json, sys
from jaxformer.data.sources import open_source

for name in sys.argv[1:]:
    print("read", json.dumps(open_source(name, "error").fingerprint()))
"""


def with_real_packages(script: str, server: HubServer, home: Path, offline: str) -> list[Any]:
    """What the script says of two sources, in a process that takes `server` for the Hub."""
    env = {**os.environ, "HF_ENDPOINT": server.address, "HF_HOME": str(home)}
    process = subprocess.run(
        [sys.executable, "-c", script, "hf:org/name", "hf:org/name@main:test"],
        env={**env, "HF_HUB_OFFLINE": offline},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    return [json.loads(line[5:]) for line in lines if line.startswith("read ")]


def test_the_packages_of_the_hub_read_shards_without_a_copy_and_remember_the_commit(
    tmp_path: Path,
) -> None:
    texts = [f"text {row} " * 20 for row in range(600)]
    with hub_server() as server:
        for number in range(3):
            content = lines(texts[200 * number : 200 * number + 200])
            server.files[f"data/train-{number}.jsonl"] = content
        server.files["data/test-0.jsonl"] = lines(["a test"])
        whole, small = with_real_packages(READ, server, tmp_path, "0")
        sizes = {name: len(content) for name, content in server.files.items()}
        assert whole[1] == sum(sizes[f"data/train-{number}.jsonl"] for number in range(3))
        assert len(whole[2]) == 6
        assert [text for part in whole[2] for text in part] == texts
        assert small[1:] == [sizes["data/test-0.jsonl"], [["a test"]]]
        kept = [file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()]
        assert sum(kept) < sizes["data/train-0.jsonl"]
        fingerprints = with_real_packages(FINGERPRINT, server, tmp_path, "1")
        assert fingerprints == [whole[0], small[0]]  # without asking
