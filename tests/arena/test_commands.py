"""What an arena's directory holds decides what may change between two commands."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from arena.test_match import BASE, CONTESTANTS

from jaxformer.arena import commands, run
from jaxformer.arena.commands import prepare
from jaxformer.errors import UserError


@pytest.fixture
def file(tmp_path):
    arena = {
        "baseline": "attention",
        "base": BASE,
        "contestants": CONTESTANTS,
        "tasks": {"parity": {}},
        "learning_rates": [1e-3],
        "dir": str(tmp_path / "arena"),
    }
    path = tmp_path / "arena.yaml"
    path.write_text(yaml.safe_dump(arena))
    return str(path)


def test_more_seeds_and_rates_go_on_with_the_same_sizes(file):
    _, before = prepare(file, [])
    config, after = prepare(file, ["seeds=[0,1,2,3]", "learning_rates=[0.001,0.01]"])
    assert after == before
    assert config.seeds == (0, 1, 2, 3)


def test_a_contestant_that_joins_leaves_the_others_as_they_are(file):
    config, before = prepare(file, [])
    kept = Path(config.dir) / "arena.json"  # as if another machine's clock had matched them
    kept.write_text(
        kept.read_text().replace('"model.ffn.d_hidden": 96', '"model.ffn.d_hidden": 88')
    )
    _, after = prepare(file, ["contestants.joined={model: {mixer: {window: 4}}}"])
    chosen = {contestant: solved for (_, contestant), solved in after.solved.items()}
    assert chosen["window"] == {"model.ffn.d_hidden": 88}
    assert chosen["joined"] == {"model.ffn.d_hidden": 96}
    assert chosen["retention"] == before.solved["parity", "retention"]


def test_other_cells_in_the_same_directory_are_refused(file):
    prepare(file, [])
    with pytest.raises(UserError, match="base, match, contestants.window differ; give"):
        prepare(file, ["base.train.steps=7", "match=null", "contestants.window={}"])


def test_an_arena_without_its_data_is_left_out_of_all(file, tmp_path, capsys):
    refused = tmp_path / "a.yaml"  # before arena.yaml
    refused.write_text(Path(file).read_text() + "efficiency: {task: none}\n")
    options = {"out": tmp_path / "findings.md", "dry_run": True, "workers": 1}
    assert commands.arenas(str(tmp_path), [], **options) == 2
    said = capsys.readouterr()
    assert f"{refused} is left out: " in said.err and "'none' is not a task" in said.err
    assert f"== {file}" in said.out and "9 cells, 9 of them to run" in said.out


def test_an_accelerator_has_one_process(file, monkeypatch):
    trained = []

    def train(config):
        trained.append(config.run.dir)
        return 75 if len(trained) == 3 else 1

    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(commands, "find_devices", lambda: [SimpleNamespace(platform="gpu")])
    assert commands.arena(file, [], dry_run=False, workers=2) == 75
    assert len(trained) == 3


def test_a_cell_that_fails_ends_the_command_with_1_and_the_same_command_tries_it_again(
    file, monkeypatch, capsys
):
    trained = []

    def train(config):
        trained.append(config.run.dir)
        if len(trained) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return 75 if len(trained) == 10 else 1

    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(commands, "find_devices", lambda: [SimpleNamespace(platform="gpu")])
    assert commands.arena(file, [], dry_run=False, workers=1) == 1
    assert len(trained) == 9
    failed = "parity/attention/lr_0.001/seed_1"
    said = capsys.readouterr().err
    assert f"{failed} failed: OSError: [Errno 28] No space left on device (" in said
    assert f"1 of 9 cells have no result: {failed}. They ended for reasons" in said
    assert commands.arena(file, [], dry_run=False, workers=1) == 75
    assert trained[9] == trained[1]
