"""Cells are run once, by whom they belong to, and every end is a result."""

import pytest
from arena.test_match import make_arena

from jaxformer.arena import run
from jaxformer.arena.cells import cells
from jaxformer.arena.match import match
from jaxformer.checkpoint.lock import RunLocked
from jaxformer.schema import UserError


@pytest.fixture
def every(tmp_path):
    arena = make_arena(seeds=[0], learning_rates=[1e-3, 1e-2], dir=str(tmp_path / "arena"))
    return cells(arena, match(arena, lambda config: 1.0))


def train_with(monkeypatch, codes):
    """Stands for training: by the cell's number, an exit code, or an error to raise."""
    trained = []

    def train(config):
        trained.append(config.run.dir)
        code = codes[len(trained) - 1] if len(trained) <= len(codes) else 1
        if isinstance(code, Exception):
            raise code
        return code

    monkeypatch.setattr(run, "train", train)
    return trained


def test_a_failed_cell_is_a_result_and_is_not_run_again(every, monkeypatch):
    trained = train_with(monkeypatch, [1, UserError("no such mixer"), ValueError("a bug")])
    assert run.run_cells(every, 0)
    failures = [cell.result()["failed"] for cell in every]
    assert failures[:2] == ["diverged", "no such mixer"]
    assert "ValueError: a bug" in failures[2]
    assert len(trained) == len(every) == 6
    assert run.run_cells(every, 0)
    assert len(trained) == 6


def test_a_signal_ends_the_work_and_the_rest_is_left_for_the_next_time(every, monkeypatch):
    trained = train_with(monkeypatch, [1, 75])
    assert not run.run_cells(every, 4)  # from the fifth, and round
    assert trained == [str(every[4].directory), str(every[5].directory)]
    assert [cell.result() is not None for cell in every] == [False] * 4 + [True, False]


def test_a_cell_that_another_process_is_at_is_passed_over(every, monkeypatch):
    trained = train_with(monkeypatch, [RunLocked("another host's")])
    with run._claimed(every[2]) as mine:
        assert mine
        assert run.run_cells(every, 0)
    assert every[0].result() is None
    assert every[2].result() is None
    assert len(trained) == 5
    with run._claimed(every[2]) as mine:
        assert mine
