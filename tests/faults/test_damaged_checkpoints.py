"""What a disk may do to a checkpoint, between two starts of a run."""

import shutil
from pathlib import Path

import pytest

from tests.faults.disturbed import Undisturbed
from tests.runs import finish


def damaged_copy(undisturbed: Undisturbed, name: str) -> tuple[Path, list[Path]]:
    """The undisturbed run without its last checkpoint, and the checkpoints that are left."""
    run = undisturbed.run.with_name(name)
    shutil.copytree(undisturbed.run, run)
    shutil.rmtree(run / "checkpoints" / str(undisturbed.steps))
    return run, sorted((run / "checkpoints").iterdir(), key=lambda step: int(step.name))


def largest_file(step: Path) -> Path:
    files = [file for file in (step / "params").rglob("*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_damaged_newest_checkpoint_is_named_and_the_run_ends_as_if_it_had_been_left_alone(
    undisturbed,
):
    run, (*_, good, bad) = damaged_copy(undisturbed, "damaged")  # the best may be older
    name = largest_file(bad).relative_to(bad)
    flip(bad / name)
    before = (bad / name).read_bytes()
    output = undisturbed.complete(run)
    assert f"warning: checkpoint {bad} is damaged: {name}: expected sha256 " in output
    assert f"resumed from {good}" in output
    assert (bad.with_name(f"{bad.name}.damaged") / name).read_bytes() == before
    undisturbed.assert_equals(run)


@pytest.mark.parametrize("harm", [cut, Path.unlink])
def test_where_every_checkpoint_is_damaged_training_refuses_to_start_anew(undisturbed, harm):
    run, steps = damaged_copy(undisturbed, f"all-damaged-{harm.__name__}")
    for step in steps:
        harm(largest_file(step))
    before = sorted(run.rglob("checkpoints/**/*"))
    code, output = finish(undisturbed.start(run))
    assert code == 2, output
    numbers = ", ".join(step.name for step in steps)
    assert f"error: every checkpoint in {run}/checkpoints is damaged ({numbers})" in output
    assert "Traceback" not in output
    assert sorted(run.rglob("checkpoints/**/*")) == before


def test_what_interrupted_saves_have_left_is_no_checkpoint(undisturbed):
    run, steps = damaged_copy(undisturbed, "unfinished")
    for step in steps:
        step.rename(step.with_name(f"{step.name}.orbax-checkpoint-tmp"))
    assert "resumed from" not in undisturbed.complete(run)
    undisturbed.assert_equals(run)
