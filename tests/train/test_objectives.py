"""Runs with another objective than the next token's cross-entropy."""

import shutil
from pathlib import Path

import pytest
import yaml

from jaxformer.config import Config
from jaxformer.config.loading import load_config
from jaxformer.errors import UserError
from jaxformer.train.run import train
from tests.runs import assert_same_arrays, make_config, results, saved_arrays
from tests.train.test_loop import signal_at_step


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run of 12 steps with the tokenizer and rows of the students."""
    folder = tmp_path_factory.mktemp("teacher")
    assert train(make_config(folder, optimizer={"learning_rate": 0.03})) == 0
    return folder / "run"


def student(folder: Path, teacher: Path, **changes: object) -> Config:
    """Of one layer, trained 4 steps beside the teacher's two, and with a padded vocabulary."""
    folder.mkdir()
    objective = {"kind": "distillation", "teacher": str(teacher), "weight": 1.0, "temperature": 2.0}
    return make_config(
        folder,
        model={"num_layers": 1, "vocab_size": 260},
        train={"steps": 4, "log_every": 1, "objective": objective | changes},
        optimizer={"learning_rate": 0.01},
    )


def test_a_student_comes_nearer_to_its_teacher_and_resumes_to_the_last_bit(
    tmp_path, teacher, monkeypatch
):
    assert train(student(tmp_path / "whole", teacher)) == 0
    rows = [row for row in results(tmp_path / "whole" / "run") if "loss" in row]
    assert rows[-1]["divergence"] < 0.9 * rows[0]["divergence"]

    stopped = student(tmp_path / "stopped", teacher)
    with monkeypatch.context() as patch:
        signal_at_step(patch, 2)
        assert train(stopped) == 75
    assert train(stopped) == 0
    ours, theirs = (saved_arrays(tmp_path / name / "run", 4) for name in ("stopped", "whole"))
    assert_same_arrays(ours, theirs)


def test_a_student_keeps_its_teacher_and_goes_on_where_both_have_moved(
    tmp_path, teacher, monkeypatch
):
    there = tmp_path / "teacher"
    shutil.copytree(teacher, there)
    config = student(tmp_path / "student", there)
    with monkeypatch.context() as patch:
        signal_at_step(patch, 2)
        assert train(config) == 75
    shutil.rmtree(there)
    moved = (tmp_path / "student" / "run").rename(tmp_path / "moved")
    assert train(load_config(moved)) == 0
    assert (moved / "teacher" / "checkpoints" / "12").is_dir()
    assert load_config(moved).train.objective.teacher == str(moved / "teacher")


def test_a_teacher_that_has_changed_since_the_run_began_is_refused(tmp_path, teacher, monkeypatch):
    changing = tmp_path / "teacher"
    shutil.copytree(teacher, changing)
    config = student(tmp_path / "student", changing)
    with monkeypatch.context() as patch:
        signal_at_step(patch, 1)
        assert train(config) == 75
    shutil.rmtree(tmp_path / "student" / "run" / "teacher")
    shutil.rmtree(changing / "checkpoints" / "12")
    with pytest.raises(UserError, match=r"has changed since this run began: step 12 then, 8 now"):
        train(config)


def test_a_teacher_with_another_tokenizer_is_refused(tmp_path, teacher):
    config = student(tmp_path / "student", teacher)
    data = config.data.model_copy(update={"tokenizer": "ids:257"})
    task = {"task": {"kind": "parity"}}
    other = Config.model_validate(
        config.model_dump() | {"data": data.model_dump() | task, "init": {}}
    )
    with pytest.raises(UserError, match="teacher and student need the same one"):
        train(other)
    assert not (tmp_path / "student" / "run").exists()


def test_a_teacher_whose_positions_end_before_the_rows_is_refused(tmp_path, teacher):
    short = tmp_path / "teacher"
    shutil.copytree(teacher, short)
    text = yaml.safe_load((short / "config.yaml").read_text())
    text["model"]["positions"] = {"kind": "learned", "max_length": 8}
    text["data"]["sequence_length"] = 8
    (short / "config.yaml").write_text(yaml.safe_dump(text))
    with pytest.raises(UserError, match=r"rows of up to 8 tokens, and data.sequence_length is 16"):
        train(student(tmp_path / "student", short))
    assert not (tmp_path / "student" / "run").exists()


def test_a_teacher_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist; give a run directory"):
        train(student(tmp_path / "student", tmp_path / "nowhere"))
