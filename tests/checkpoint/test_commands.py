"""`jaxformer checkpoint ...` on a run of three steps."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.checkpoint.difference import compare
from jaxformer.checkpoint.lock import RunLock
from jaxformer.checkpoint.manager import Checkpoints
from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.cli import main
from tests.checkpoint.test_manager import cut, files_of, flip, largest_file
from tests.runs import make_config


def save(checkpoints: Checkpoints, step: int, loss: float | None, **trees: dict) -> None:
    random = np.random.default_rng(step)
    params = {"embedding": random.normal(size=(8, 4)).astype(np.float32), "scale": np.ones(4)}
    trees = {"params": params, "opt_state": {"count": np.int32(step)}} | trees
    state = {"step": step, "data": {"next_batch": step}, "nonfinite": 0}
    manifest = {"config": {"model": {"d_model": 4}, "train": {"steps": step}}}
    checkpoints.save(step, jax.tree.map(jnp.asarray, trees), state, manifest, loss)


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create(make_config(tmp_path))
    with Checkpoints(directory.checkpoints, keep_newest=3) as checkpoints:
        for step, loss in ((10, 2.0), (20, 1.0), (30, None)):
            save(checkpoints, step, loss)
    return directory.path


def checkpoint(*arguments: object) -> int:
    return main(["checkpoint", *map(str, arguments)])


def lines(text: str) -> list[list[str]]:
    """The words of each line, without the column of sizes and that of dates."""
    return [[line.split()[0], *line.split()[3:]] for line in text.splitlines()]


def test_ls_shows_a_line_a_step_with_loss_marks_and_health(run, capsys):
    cut(largest_file(run / "checkpoints" / "30"))
    (run / "checkpoints" / "10").rename(run / "checkpoints" / "10.damaged")
    flip(largest_file(run / "checkpoints" / "10.damaged"))
    (run / "checkpoints" / "40.orbax-checkpoint-tmp").mkdir()
    assert checkpoint("ls", run) == 0
    header, aside, good, damaged, unfinished = lines(capsys.readouterr().out)[:5]
    assert header == ["step", "eval/loss", "health"]
    assert aside == ["10.damaged", "2.0000", "unverified"]
    assert good == ["20", "1.0000", "newest", "best", "unverified"]
    assert damaged[:3] == ["30", "-", "damaged:"]
    assert unfinished == ["40.orbax-checkpoint-tmp", "-", "incomplete"]
    assert checkpoint("ls", run, "--verify") == 0
    _, aside, good, damaged, _ = lines(capsys.readouterr().out)
    assert aside[:3] == ["10.damaged", "-", "damaged:"]
    assert good == ["20", "1.0000", "newest", "best", "complete"]


def test_inspect_shows_every_array_and_how_many_numbers(run, capsys):
    assert checkpoint("inspect", run) == 0
    page = capsys.readouterr().out
    assert f"checkpoint {run}/checkpoints/30\n" in page
    assert "step 30, eval/loss not evaluated" in page
    assert "  model:\n    d_model: 4\n" in page
    assert "params: 36 numbers in 2 arrays" in page
    words = [line.split() for line in page.splitlines()]
    assert ["embedding", "float32[8,", "4]", "32"] in words
    assert ["count", "int32[]", "1"] in words


def test_inspect_prints_the_manifest_as_json(run, capsys):
    assert checkpoint("inspect", run / "checkpoints" / "20", "--json") == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["metrics"] == {"eval/loss": 1.0}
    assert manifest["state"]["data"] == {"next_batch": 20}
    assert manifest["trees"]["params"]["scale"] == {"shape": [4], "dtype": "float32"}


def test_verify_prints_each_fault_and_fails(run, capsys):
    assert checkpoint("verify", run) == 0
    assert capsys.readouterr().out.count(": complete, ") == 3
    step = run / "checkpoints" / "20"
    file = largest_file(step)
    flip(file)
    (step / "params" / "_METADATA").unlink()
    assert checkpoint("verify", run) == 1
    printed = capsys.readouterr().out
    assert f"{step}: damaged" in printed
    assert f"  {file.relative_to(step)}\n    expected sha256 " in printed
    assert "  params/_METADATA\n    expected " in printed
    assert "    found    no file\n" in printed
    assert checkpoint("verify", run / "checkpoints" / "30") == 0


def test_diff_shows_configuration_trees_and_values(run, capsys, monkeypatch):
    with Checkpoints(run / "checkpoints", keep_newest=9) as checkpoints:
        checkpoints.newest_good()
        params = {"embedding": np.zeros((9, 4), np.float32), "scale": np.full(4, 1.5)}
        save(checkpoints, 40, None, params=params, ema={"scale": np.ones(4)})
    assert checkpoint("diff", run / "checkpoints" / "30", run) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"A {run}/checkpoints/30",
        f"B {run}/checkpoints/40",
        "",
        "configuration: 1 keys differ",
        "  train.steps: 30 in A, 40 in B",
        "",
        "opt_state: 0 of 1 arrays are bitwise equal",
        "  count: values differ by up to 10",
        "",
        "params: 0 of 2 arrays are bitwise equal",
        "  scale: values differ by up to 0.5",
        "  embedding: float32[8, 4] in A, float32[9, 4] in B",
        "",
        "ema: only in B",
    ]
    assert checkpoint("diff", run, run) == 0
    assert "params: 2 of 2 arrays are bitwise equal\n" in capsys.readouterr().out
    monkeypatch.chdir(run.parent)
    assert checkpoint("diff", Path(run.name), Path(run.name)) == 0
    assert "params: 2 of 2 arrays are bitwise equal\n" in capsys.readouterr().out


def test_the_same_values_in_other_bits_are_not_bitwise_equal():
    assert compare(np.float32([0.0, 1.0]), np.float32([-0.0, 1.0])) == (False, 0.0)
    assert compare(np.float32([np.nan]), np.float32([np.nan])) == (True, 0.0)
    apart = compare(np.zeros((2, 3, 2)), np.arange(12.0).reshape(2, 3, 2))
    assert apart == (False, 11.0)


def test_rm_removes_what_it_is_given_and_nothing_else(run, capsys):
    before = files_of(run / "checkpoints" / "30")
    assert checkpoint("rm", run, 10, 20) == 0
    assert [each.name for each in (run / "checkpoints").iterdir()] == ["30"]
    assert files_of(run / "checkpoints" / "30") == before
    assert checkpoint("rm", run, 31) == 2
    assert "has no step '31'; it has 30." in capsys.readouterr().err


def test_rm_keeps_the_last_good_one_unless_forced(run, capsys):
    flip(largest_file(run / "checkpoints" / "10"))
    flip(largest_file(run / "checkpoints" / "20"))
    assert checkpoint("rm", run, 30) == 2
    assert f"{run}/checkpoints/30 is the last good checkpoint of its run" in capsys.readouterr().err
    assert (run / "checkpoints" / "30").is_dir()
    assert checkpoint("rm", run, 30, "--force") == 0
    assert not (run / "checkpoints" / "30").exists()


def test_rm_is_refused_beside_a_writer(run, capsys):
    with RunLock(RunDirectory(run)):
        assert checkpoint("rm", run, 10) == 2
        assert "has a writer already" in capsys.readouterr().err
    assert (run / "checkpoints" / "10").is_dir()


@pytest.mark.parametrize("command", ["ls", "inspect", "verify"])
def test_a_run_without_checkpoints_says_so(tmp_path, capsys, command):
    directory = RunDirectory(tmp_path / "run")
    directory.create(make_config(tmp_path))
    assert checkpoint(command, directory.path) == 2
    assert "has no checkpoint yet: it has no folder checkpoints/" in capsys.readouterr().err
    assert checkpoint(command, tmp_path / "nowhere") == 2
    assert "nowhere does not exist; give a run directory" in capsys.readouterr().err
