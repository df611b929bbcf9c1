from pathlib import Path

import pytest

from jaxformer.checkpoint.run_directory import RunDirectory, locate
from jaxformer.config.loading import load_config
from jaxformer.errors import UserError
from jaxformer.paths import replace_text
from tests.runs import make_config


@pytest.fixture
def used(tmp_path):
    """A run directory with its configuration and a checkpoint."""
    directory = RunDirectory(tmp_path / "run")
    directory.create(make_config(tmp_path))
    (directory.checkpoints / "4").mkdir(parents=True)
    return directory


def test_the_same_configuration_may_go_on(used, tmp_path):
    used.check(make_config(tmp_path))


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"steps": 20}},
        {"train": {"log_every": 1, "max_nonfinite_steps": 2, "accumulation": 2}},
        {"train": {"profile": {"start": 9, "steps": 2}}},
        {"eval": {"every": 3}},
        {"checkpoint": {"keep_newest": 9}},
        {"mesh": {"fsdp": 2}},
        {"data": {"prefetch": 0}},
    ],
    ids=str,
)
def test_length_cadence_and_place_may_change(used, tmp_path, sections):
    used.check(make_config(tmp_path, **sections))


def test_a_change_of_model_data_or_optimizer_is_refused_with_the_keys(used, tmp_path):
    changed = make_config(
        tmp_path,
        model={"d_model": 32},
        data={"sequence_length": 8},
        optimizer={"kind": "lion", "b1": 0.8},
        train={"seed": 3},
    )
    with pytest.raises(UserError) as error:
        used.check(changed)
    assert str(error.value).splitlines() == [
        f"run.dir {used.path} holds a run of another configuration; give another run.dir, or set "
        "back:",
        "  model.d_model: 16 before, 32 now",
        "  data.sequence_length: 16 before, 8 now",
        "  train.seed: 0 before, 3 now",
        '  optimizer.kind: "adamw" before, "lion" now',
        "  optimizer.b1: 0.9 before, 0.8 now",
        "  optimizer.b2: 0.95 before, 0.99 now",
        "  optimizer.eps: 1e-08 before, not set now",
    ]


def test_other_data_or_another_seed_may_be_accepted(used, tmp_path):
    changed = {"data": {"validation_fraction": 0.1}, "train": {"seed": 3}}
    with pytest.raises(UserError) as error:
        used.check(make_config(tmp_path, **changed))
    assert str(error.value).splitlines() == [
        f"run.dir {used.path} holds a run of another configuration; give another run.dir, "
        "run.accept_changes=[data,seed], or set back:",
        "  data.validation_fraction: 0.05 before, 0.1 now",
        "  train.seed: 0 before, 3 now",
    ]
    used.check(make_config(tmp_path, **changed, run={"accept_changes": ["data", "seed"]}))
    longer = {"data": {"sequence_length": 32}, "train": {"batch_size": 8}}
    used.check(make_config(tmp_path, **longer, run={"accept_changes": ["data"]}))
    other = {"data": {"add_bos": True}, "run": {"accept_changes": ["data"]}}
    with pytest.raises(UserError, match=r"another run.dir, or set back:\n  data.add_bos"):
        used.check(make_config(tmp_path, **other))


def test_another_optimizer_may_start_from_the_parameters_alone(used, tmp_path):
    with pytest.raises(UserError) as error:
        used.check(make_config(tmp_path, optimizer={"b1": 0.8}))
    assert str(error.value).splitlines() == [
        f"run.dir {used.path} holds a run of another configuration; give another run.dir, with "
        f"init.from={used.path} to start from its parameters alone, or set back:",
        "  optimizer.b1: 0.9 before, 0.8 now",
    ]


def test_fewer_steps_are_refused(used, tmp_path):
    with pytest.raises(
        UserError, match=r"train.steps is 8, but that of the run in .* is 12; it may grow"
    ):
        used.check(make_config(tmp_path, train={"steps": 8}))


def test_a_used_directory_is_refused_when_resuming_is_never(used, tmp_path):
    config = make_config(tmp_path, run={"resume": "never"})
    with pytest.raises(UserError, match=r"holds a run already and run.resume is never"):
        used.check(config)
    RunDirectory(tmp_path / "other").check(config)


def test_a_directory_without_a_checkpoint_takes_any_configuration(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create(make_config(tmp_path))
    directory.check(make_config(tmp_path, model={"d_model": 32}))


def test_a_directory_without_a_checkpoint_may_have_a_configuration_that_cannot_be_read(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.make()
    directory.config.write_text("model: [")
    config = make_config(tmp_path)
    directory.check(config)
    assert directory.with_own_copies(config) == config
    directory.create(config)
    assert directory.saved() == config


def test_a_directory_that_cannot_be_made_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"file/run cannot be written: .*/file is a file; give a folder"
    ):
        RunDirectory(tmp_path / "file" / "run").check(make_config(tmp_path))


def test_the_configuration_in_a_run_means_the_directory_in_which_it_lies(used, tmp_path):
    moved = used.path.rename(tmp_path / "größer und 'anders'")
    assert load_config(moved / "config.yaml").run.dir == str(moved)
    assert load_config(moved).run.dir == str(moved)
    (tmp_path / "link").symlink_to(moved)
    assert load_config(tmp_path / "link").run.dir == str(moved)
    for override in ("train.steps=20", "run={resume: never}", "run.resume=never"):
        assert load_config(moved / "config.yaml", [override]).run.dir == str(moved)
    for override in ("run.dir=elsewhere", "run={dir: elsewhere}"):
        assert load_config(moved, [override]).run.dir == "elsewhere"


def test_a_folder_of_configurations_is_no_run(used, tmp_path):
    (tmp_path / "configs/checkpoints/of_others").mkdir(parents=True)
    file = tmp_path / "configs/config.yaml"
    file.write_bytes(used.config.read_bytes())
    assert load_config(file).run.dir == str(used.path)
    with pytest.raises(UserError, match="configs is a folder; name a file"):
        load_config(file.parent)


def test_paths_are_saved_absolute_and_the_original_configuration_goes_on(tmp_path, monkeypatch):
    (tmp_path / "corpus").mkdir()
    sections = {
        "data": {
            "source": [{"source": "text:*.txt"}, {"source": "hf:corpus:train"}],
            "validation_source": "jsonl:~/v.jsonl",
            "cache_dir": "~/stores",
        },
        "init": {"from": "../base"},
        "eval": {"tasks_dir": "tasks"},
        "run": {"dir": "run"},
    }
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    config = make_config(tmp_path, **sections)
    directory = RunDirectory("run")
    directory.create(config)
    saved = RunDirectory(tmp_path / "run").saved()
    assert [entry.source for entry in saved.data.source] == [
        f"text:{tmp_path}/*.txt",
        f"hf:{tmp_path}/corpus:train",
    ]
    assert saved.init.source == str(tmp_path.parent / "base")
    assert saved.eval.tasks_dir == str(tmp_path / "tasks")
    assert saved.run.dir == str(tmp_path / "run")
    # A home directory is another one for somebody else, but no working directory matters to it.
    assert saved.data.validation_source == "jsonl:~/v.jsonl"
    assert saved.data.cache_dir == "~/stores"

    (directory.checkpoints / "4").mkdir(parents=True)
    directory.check(config)
    home = {"validation_source": f"jsonl:{Path.home()}/v.jsonl"}
    directory.check(make_config(tmp_path, **sections | {"data": sections["data"] | home}))
    monkeypatch.chdir("/")
    directory = RunDirectory(tmp_path / "run")
    directory.check(load_config(tmp_path / "run"))
    with pytest.raises(UserError, match="init.from: "):
        directory.check(config)


def test_a_run_that_was_saved_with_relative_paths_goes_on_from_where_it_began(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    sections = {"data": {"source": "text:*.txt"}, "init": {"from": "base"}, "run": {"dir": "run"}}
    config = make_config(tmp_path, **sections)
    (tmp_path / "run/checkpoints/4").mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text(config.model_dump_json())
    RunDirectory("run").check(config)
    directory = RunDirectory(tmp_path / "run")
    directory.check(load_config("run"))
    directory.create(load_config("run"))
    assert directory.saved().init.source == str(tmp_path / "base")


def test_what_is_accepted_is_accepted_for_one_start(used, tmp_path):
    changed = make_config(tmp_path, train={"seed": 3}, run={"accept_changes": ["seed"]})
    used.check(changed)
    used.create(changed)
    assert load_config(used.path).run.accept_changes == ()
    with pytest.raises(UserError, match="train.seed: 3 before, 0 now"):
        used.check(make_config(tmp_path))


def test_the_schedule_and_the_rates_may_be_accepted(used, tmp_path):
    changed = {"learning_rate": 1e-4, "schedule": {"warmup_steps": 3, "kind": "constant"}}
    with pytest.raises(UserError, match=r"run.accept_changes=\[schedule\], or set back"):
        used.check(make_config(tmp_path, optimizer=changed))
    accepted = {"accept_changes": ["schedule"]}
    used.check(make_config(tmp_path, optimizer=changed, run=accepted))


def test_a_path_is_a_run_or_one_of_its_checkpoints(used, tmp_path):
    assert locate(used.path)[0].path == used.path
    assert locate(used.path)[1] is None
    directory, step = locate(used.checkpoints / "4")
    assert (directory.path, step) == (used.path, 4)
    with pytest.raises(UserError, match=r"checkpoints/5 does not exist; look into"):
        locate(used.checkpoints / "5")
    with pytest.raises(UserError, match=r"checkpoints is no run; give a run directory"):
        locate(used.checkpoints)
    with pytest.raises(UserError, match=r"nowhere does not exist; give a run directory"):
        locate(tmp_path / "nowhere")


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "file"
    replace_text(path, "one\n")
    replace_text(path, "two\n")
    assert path.read_text() == "two\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
