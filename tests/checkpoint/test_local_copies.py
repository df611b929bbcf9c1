"""Copies on a local disk, of one process; several stand in tests/devices/test_local_copies.py."""

import errno
import json

import jax
import numpy as np
import pytest

from jaxformer.checkpoint import local_copies
from jaxformer.checkpoint.interop.safetensors import read_header
from jaxformer.checkpoint.interop.source import TensorInfo
from jaxformer.checkpoint.lineage import Lineage, record_start
from jaxformer.checkpoint.local_copies import LocalCopies
from jaxformer.checkpoint.passing_on import Copy, pass_on, plan_of
from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.checkpoint.shards import Part, write_shards
from jaxformer.errors import UserError
from jaxformer.parallel import processes
from jaxformer.storage import Place
from jaxformer.train.run import train
from tests.checkpoint.test_manager import flip, like, make_trees
from tests.runs import assert_same_arrays, make_config, results, saved_arrays

STATE = {"step": 1, "data": {"next_batch": 1}, "nonfinite": 0}


def manifest(steps: int = 12, **changed) -> dict:
    now = {
        "config": {"train": {"steps": steps, "log_every": 1}, "model": {"d_model": 4}},
        "data": ["text"],
        "tokenizer": {"fingerprint": "f"},
        "mesh": {"data": 1},
    }
    return now | changed


def opened(tmp_path) -> LocalCopies:
    (tmp_path / "run").mkdir(exist_ok=True)
    return LocalCopies(str(tmp_path / "disk"), RunDirectory(tmp_path / "run"))


def save(copies: LocalCopies, *steps: int) -> None:
    for step in steps:
        copies.save(step, make_trees(step), STATE | {"step": step}, manifest())
    copies.wait()


def newest(tmp_path, after: int = 0, **changed):
    return opened(tmp_path).newest(after, manifest(**changed), like(make_trees()))


def folders(tmp_path) -> dict[str, object]:
    return {each.name: each for each in (tmp_path / "disk").glob("*/process_0/*")}


@pytest.fixture
def saved(tmp_path):
    copies = opened(tmp_path)
    copies.begin(0)
    save(copies, 1, 2, 3)
    return tmp_path


def test_what_is_restored_is_what_was_saved_in_structure_dtype_and_bits(tmp_path):
    copies, trees = opened(tmp_path), make_trees(0.1)
    copies.begin(0)
    copies.save(7, trees, STATE, manifest())
    copies.wait()
    restored = opened(tmp_path).newest(0, manifest(), like(trees))
    assert (restored.step, restored.progress) == (7, STATE)
    assert jax.tree.structure(restored.arrays) == jax.tree.structure(trees)
    for new, old in zip(jax.tree.leaves(restored.arrays), jax.tree.leaves(trees), strict=True):
        assert new.dtype == old.dtype
        assert new.sharding == old.sharding
        assert np.asarray(new).tobytes() == np.asarray(old).tobytes()


def test_steps_that_follow_a_copy_do_not_reach_into_it(tmp_path):
    copies = opened(tmp_path)
    copies.begin(0)
    update = jax.jit(lambda w: w + 1, donate_argnums=0)
    weights = jax.numpy.zeros((512, 512))
    copies.save(1, {"params": {"w": weights}}, STATE, manifest())
    for _ in range(20):
        weights = update(weights)
    copies.wait()
    wanted = like({"params": {"w": weights}})
    assert not np.any(opened(tmp_path).newest(0, manifest(), wanted).arrays["params"]["w"])


def test_the_newest_two_are_kept_and_only_a_newer_one_than_the_checkpoint_is_used(saved):
    assert folders(saved).keys() == {"2", "3"}
    assert newest(saved).step == newest(saved, after=2).step == 3
    assert newest(saved, after=3) is None


def test_a_damaged_copy_is_named_and_the_one_before_is_used(saved, capsys):
    damaged = folders(saved)["3"]
    flip(damaged / "shards.safetensors")
    assert newest(saved).step == 2
    errors = capsys.readouterr().err
    assert f"warning: checkpoint {damaged} is damaged: shards.safetensors: expected" in errors
    assert "the local copies of step 3 are not complete" in errors
    (folders(saved)["2"] / "manifest.json").write_text("{}")
    assert newest(saved) is None


def test_a_copy_counts_for_the_step_that_it_was_made_of(saved):
    folders(saved)["2"].rename(folders(saved)["2"].with_name("5"))
    assert newest(saved).step == 3


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"mesh": {"data": 2}}, "mesh"),
        ({"data": ["other"]}, "data"),
        ({"tokenizer": {"fingerprint": "g"}}, "tokenizer"),
        ({"steps": 20}, "train.steps"),
        ({"config": {"train": {"steps": 12}, "model": {"d_model": 8}}}, "model.d_model"),
    ],
)
def test_a_copy_of_another_run_is_not_used_and_the_difference_named(saved, capsys, changed, named):
    assert newest(saved, **changed) is None
    assert f"is not used: {named} changed since" in capsys.readouterr().err


def test_a_key_that_decides_no_results_may_change(saved):
    config = {"train": {"steps": 12, "log_every": 9}, "model": {"d_model": 4}}
    assert newest(saved, config=config).step == 3


def test_other_arrays_than_the_runs_are_not_used(saved, capsys):
    trees = make_trees()
    trees["params"]["b"] = trees["params"]["b"].astype(jax.numpy.bfloat16)
    assert opened(saved).newest(0, manifest(), like(trees)) is None
    assert "has another params/b@0:3 than this run; it is not used" in capsys.readouterr().err


def test_what_an_earlier_start_reached_beyond_a_later_one_is_not_used(saved):
    copies = opened(saved)
    copies.begin(2)  # from a checkpoint: step 3 of the earlier start is not its past
    assert newest(saved).step == 2
    save(copies, 4)
    assert folders(saved).keys() == {"2", "4"}
    assert newest(saved).step == 4


def test_a_start_without_copies_counts_as_well(saved):
    record_start(saved / "run", 1)
    assert newest(saved) is None


def test_a_run_without_copies_has_no_list_of_its_starts(tmp_path):
    record_start(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_copied_run_does_not_write_into_the_copies_of_the_first(tmp_path):
    first = Lineage(tmp_path)
    first.begin(0)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "local.json").write_text((tmp_path / "local.json").read_text())
    other = Lineage(tmp_path / "copy")
    assert other.now == first.now
    assert other.name != first.name == Lineage(tmp_path).name


def test_a_disk_that_is_full_costs_a_copy_and_not_the_run(saved, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    copies = opened(saved)
    copies.begin(3)
    with monkeypatch.context() as patch:
        patch.setattr(local_copies, "write_shards", full)
        save(copies, 4)
    own = folders(saved)["3"].parent
    assert f"warning: no local copy of step 4 in {own}: No space left" in capsys.readouterr().err
    assert folders(saved).keys() == {"2", "3"}
    save(copies, 5)
    assert newest(saved).step == 5


def test_what_a_killed_write_has_left_is_no_copy_and_goes(saved):
    folders(saved)["3"].rename(folders(saved)["3"].with_name("3.unfinished"))
    copies = opened(saved)
    assert newest(saved).step == 2
    copies.begin(2)
    assert folders(saved).keys() == {"2"}


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "disk").write_text("")
    with pytest.raises(UserError, match="checkpoint.local .*disk cannot be written: Not a dir"):
        opened(tmp_path)


def test_a_part_comes_from_the_own_copy_or_a_replica_or_makes_the_step_unusable(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 4)
    info = TensorInfo((2,), "float32")
    parts = {
        "left": Part(info, {0, 2}),
        "right": Part(info, {1, 3}),
        "all": Part(info, {0, 1, 2, 3}),
    }
    own = {Copy(process, process) for process in range(4)}
    for process, sources in enumerate(plan_of(own, parts)):
        assert set(sources.values()) == {Copy(process, process)}
        assert sources.keys() == {"all", "right" if process % 2 else "left"}
    lost = plan_of(own - {Copy(0, 0), Copy(3, 3)}, parts)
    assert lost[0] == {"left": Copy(2, 2), "all": Copy(1, 1)}
    assert lost[3] == {"right": Copy(1, 1), "all": Copy(1, 1)}
    assert plan_of(own - {Copy(0, 0), Copy(2, 2)}, parts) is None
    swapped = plan_of({Copy(0, 1), Copy(1, 0)}, parts)  # numbers of hosts changed
    assert swapped[0] == {"left": Copy(1, 0), "all": Copy(0, 1)}


@pytest.mark.parametrize("is_damaged", [False, True])
def test_parts_arrive_at_another_process_as_they_were_or_are_not_used(
    tmp_path, monkeypatch, is_damaged
):
    array = np.arange(6, dtype=np.float32)
    write_shards(tmp_path / "file", {"part": array})
    tensors, plan = {0: read_header(tmp_path / "file")}, [{}, {"part": Copy(0, 0)}]
    said: list = []

    def gather(mine):
        said.append(mine)
        return [said[0], {}] if isinstance(mine, dict) else [True, mine]

    monkeypatch.setattr(processes, "gather", gather)
    common = Place(str(tmp_path / "common"))
    for process in range(2):
        monkeypatch.setattr(processes, "index", lambda process=process: process)
        (tmp_path / f"disk_{process}").mkdir()
        given = tensors if process == 0 else {}
        passed = pass_on(plan, given, tmp_path / f"disk_{process}", common)
        if process == 0:
            assert passed == {}
            assert list((tmp_path / "disk_0").iterdir()) == []
        if process == 0 and is_damaged:
            flip(tmp_path / "common" / "0_to_1")
    assert passed is None if is_damaged else (passed["part"].read() == array).all()


def test_a_run_goes_on_from_its_copies_as_if_it_had_not_stopped(tmp_path, capsys, monkeypatch):
    (tmp_path / "alone").mkdir()
    assert train(make_config(tmp_path / "alone")) == 0
    keep = {"every": 12, "local": str(tmp_path / "disk"), "local_every": 3}
    config = make_config(tmp_path, checkpoint=keep)

    class Killed(Exception):
        pass

    def killed(self, step, *arguments):
        save_one(self, step, *arguments)
        self.wait()
        if step == 9:
            raise Killed

    save_one = LocalCopies.save
    with monkeypatch.context() as patch:
        patch.setattr(LocalCopies, "save", killed)
        with pytest.raises(Killed):
            train(config)
    run = tmp_path / "run"
    assert [each.name for each in (run / "checkpoints").iterdir()] == ["3"]  # the first of all
    assert train(config) == 0
    assert "resumed from the local copies of step 9\n" in capsys.readouterr().out
    assert results(run) == results(tmp_path / "alone" / "run")
    assert_same_arrays(saved_arrays(run, 12), saved_arrays(tmp_path / "alone" / "run", 12))
    assert json.loads((run / "local.json").read_text())["starts"][1]["step"] == 9
    assert not folders(tmp_path)
