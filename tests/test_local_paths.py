"""Which names of a configuration are paths on a disk."""

import os
from pathlib import Path

import pytest

from jaxformer.config import Config
from jaxformer.config.local_paths import as_they_are_here, made_absolute
from tests.runs import MODEL


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "arrayrecord", "webdataset"])
def test_paths_of_files_become_absolute_and_addresses_stay(kind: str) -> None:
    for where, expected in {
        "data/*.x": os.path.abspath("data/*.x"),
        "~/data": "~/data",
        "gs://bucket/data/*.x": "gs://bucket/data/*.x",
        "https://host/{00..99}": "https://host/{00..99}",
    }.items():
        config = Config.model_validate({"model": MODEL, "data": {"source": f"{kind}:{where}"}})
        assert made_absolute(config).data.source == f"{kind}:{expected}"
        here = f"{kind}:{os.path.expanduser(expected)}"
        assert as_they_are_here(config).data.source == here


def test_a_name_on_the_hub_stays_and_a_folder_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    for source, expected in {
        "hf:org/name@main:train": "hf:org/name@main:train",
        "hf:saved:test": f"hf:{tmp_path}/saved:test",
    }.items():
        config = Config.model_validate({"model": MODEL, "data": {"validation_source": source}})
        assert made_absolute(config).data.validation_source == expected
