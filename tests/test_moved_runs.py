"""A run directory is moved, everything it was made from is gone but the data, and every command
works on it from any directory."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

import jaxformer as jf
from jaxformer.checkpoint.manager import Checkpoints
from jaxformer.cli import main
from jaxformer.train.metrics import read_rows
from tests.checkpoint.interop.models import write_model
from tests.runs import MODEL, write_text

MODEL = MODEL | {"num_layers": 1}

SHORT = {
    "data": {"source": "text:data/*.txt", "sequence_length": 16, "cache_dir": "cache"},
    "train": {"steps": 2, "batch_size": 4, "unroll_layers": False},
    "optimizer": {"kind": "adamw", "schedule": {"kind": "constant"}},
    "eval": {"every": 2, "batches": 2, "sample_tokens": 0},
    "run": {"dir": "runs/run"},
}
KINDS = ("bytes", "imported", "adapters")


def merged(*configurations: dict) -> dict:
    whole: dict = {}
    for configuration in configurations:
        for section, keys in configuration.items():
            whole[section] = {**whole.get(section, {}), **keys}
    return whole


def start(folder: Path, *configurations: dict) -> int:
    """`jaxformer train c.yaml`, whose every path is relative, in the folder."""
    (folder / "data").mkdir(exist_ok=True)
    write_text(folder / "data")
    (folder / "c.yaml").write_text(yaml.safe_dump(merged(SHORT, *configurations)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return main(["train", "c.yaml"])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Where each kind of run has its folder, as it was trained there."""
    folder = tmp_path_factory.mktemp("made")
    homes = {kind: folder / kind for kind in KINDS}
    for home in homes.values():
        home.mkdir()
    assert start(homes["bytes"], {"model": MODEL}) == 0

    shutil.copytree(homes["bytes"] / "runs/run", homes["adapters"] / "base")
    tuning = {"init": {"from": "base"}, "lora": {"rank": 2}}
    assert start(homes["adapters"], {"model": MODEL}, tuning) == 0

    imported = homes["imported"] / "imported"
    assert main(["import", str(write_model(homes["imported"] / "model")), str(imported)]) == 0
    model = jf.load_config(imported).model.model_dump(mode="json")
    tokenizer = {"data": {"tokenizer": "imported/tokenizer"}, "init": {"from": "imported"}}
    assert start(homes["imported"], {"model": model}, tokenizer) == 0
    return folder


@pytest.fixture
def moved(made, tmp_path, request, monkeypatch) -> Path:
    """The run, elsewhere and under another name; at home, the data alone is left."""
    shutil.copytree(made / request.param, tmp_path / "home")
    # What the file names by absolute paths is to be this copy.
    file = tmp_path / "home/runs/run/config.yaml"
    file.write_text(file.read_text().replace(str(made / request.param), str(tmp_path / "home")))
    run = tmp_path / "else where/größer"
    run.parent.mkdir()
    (tmp_path / "home/runs/run").rename(run)
    for each in (tmp_path / "home").iterdir():
        if each.name not in ("data", "cache"):
            shutil.rmtree(each) if each.is_dir() else each.unlink()
    monkeypatch.chdir(tmp_path)
    return run


def steps_of(run: Path) -> list[int]:
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.steps()


@pytest.mark.parametrize("moved", KINDS, indirect=True)
def test_every_command_works_on_a_moved_run_from_any_directory(
    moved, tmp_path, monkeypatch, capsys
):
    files = {file: file.stat().st_mtime_ns for file in moved.rglob("*")}
    monkeypatch.chdir(moved.parent)
    assert main(["eval", "größer", "eval.batches=2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    last = [row for row in read_rows(moved / "metrics.jsonl") if "eval/loss" in row][-1]
    assert (told["step"], told["loss"]) == (2, pytest.approx(last["eval/loss"], rel=1e-5))

    monkeypatch.chdir(moved)
    assert main(["generate", ".", "--prompt", "ab", "--max-new-tokens", "2"]) == 0

    monkeypatch.chdir("/")
    assert main(["export", str(moved), str(tmp_path / "exported")]) == 0
    assert (tmp_path / "exported/tokenizer.json").is_file()
    # Nothing was written, so a run that cannot be written is read all the same.
    assert {file: file.stat().st_mtime_ns for file in moved.rglob("*")} == files

    monkeypatch.chdir(tmp_path / "home/data")
    capsys.readouterr()
    assert main(["train", "../../else where/größer/config.yaml", "train.steps=4"]) == 0
    assert f"resumed from {moved}/checkpoints/2" in capsys.readouterr().out
    assert steps_of(moved) == [2, 4]
    assert not (tmp_path / "home/runs").exists()
    assert main(["train", str(moved)]) == 0
    assert f"{moved} is complete" in capsys.readouterr().out
