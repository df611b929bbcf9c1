"""Cells are run once, by whom they belong to, and what a contestant comes to is its result."""

import errno
import json
import signal
import sys

import jax
import pytest
from arena.test_match import make_arena

from jaxformer.arena import run, workers
from jaxformer.arena.cells import cells, without_result
from jaxformer.arena.match import match
from jaxformer.checkpoint.lock import RunLocked
from jaxformer.errors import DoesNotFit, RunFailed, UserError

TWO_RATES = {"seeds": [0], "learning_rates": [1e-3, 1e-2]}


@pytest.fixture(scope="module")
def matched():
    return match(make_arena(**TWO_RATES), lambda config: 1.0)


@pytest.fixture
def every(tmp_path, matched):
    return cells(make_arena(**TWO_RATES, dir=str(tmp_path / "arena")), matched)


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


def test_divergence_and_what_fits_no_device_are_results_and_are_not_run_again(every, monkeypatch):
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
    trained = train_with(monkeypatch, [1, DoesNotFit("3 heads over tensor 2"), full])
    assert run.run_cells(every, 0) == 0
    failures = [cell.result()["failed"] for cell in every]
    assert failures[:2] == ["diverged", "impossible: 3 heads over tensor 2"]
    assert failures[2].startswith("impossible: out of memory: RESOURCE_EXHAUSTED")
    assert len(trained) == len(every) == 6
    assert run.run_cells(every, 0) == 0
    assert len(trained) == 6


def test_what_says_nothing_of_a_contestant_is_told_and_tried_again(every, monkeypatch, capsys):
    causes = [
        OSError(errno.ENOSPC, "No space left on device"),
        RunFailed("checkpoint 4 could not be saved"),
        UserError("data.source text:a.txt is not there"),
        ValueError("a bug"),
        jax.errors.JaxRuntimeError("INTERNAL: a bug below"),
    ]
    trained = train_with(monkeypatch, causes)
    assert run.run_cells(every, 0) == 1
    assert [cell.result() is not None for cell in every] == [False] * 5 + [True]
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" failed: ")[0] for line in said] == [cell.name for cell in every[:5]]
    assert "OSError: [Errno 28] No space left on device (" in said[0]
    assert f"{run.__file__}:" in said[0]
    assert said[2].endswith("failed: data.source text:a.txt is not there")
    assert "ValueError: a bug" in (every[3].directory / "log.txt").read_text()

    # The workers of this command leave them; the next command forgets that they were tried.
    assert run.run_cells(every, 3) == 0
    assert len(trained) == 6
    for cell in without_result(every):
        cell.tried_file.unlink()
    assert run.run_cells(every, 0) == 0
    assert [cell.result()["failed"] for cell in every] == ["diverged"] * 6


def test_a_failure_that_was_taken_for_a_result_once_is_tried_again(every, monkeypatch):
    for cell, failed in zip(every, ["Traceback: No space left", "no such file"], strict=False):
        cell.directory.mkdir(parents=True)
        cell.result_file.write_text(json.dumps({"failed": failed, "tests": []}))
    trained = train_with(monkeypatch, [])
    assert run.run_cells(every, 0) == 0
    assert len(trained) == 6
    assert [cell.result()["failed"] for cell in every] == ["diverged"] * 6


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([0, 0], 0),
        ([0, 1], 1),
        ([1, 75], 75),
        ([0, -signal.SIGKILL], 1),
    ],
)
def test_workers_end_as_the_worst_of_them(monkeypatch, capsys, ends, code):
    dies = "import os, sys; n = {}; sys.exit(n) if n >= 0 else os.kill(os.getpid(), -n)"
    share = iter([["-c", dies.format(int(end))] for end in ends])
    monkeypatch.setattr(workers, "_command", lambda *_: [sys.executable, *next(share)])
    monkeypatch.setattr(workers, "LOOK_SECONDS", 0.01)
    assert workers.run_workers([], len(ends), []) == code
    assert ("worker 1 was killed by SIGKILL" in capsys.readouterr().err) == (min(ends) < 0)


def test_a_signal_ends_the_work_and_the_rest_is_left_for_the_next_time(every, monkeypatch):
    trained = train_with(monkeypatch, [1, 75])
    assert run.run_cells(every, 4) == 75  # from the fifth, and round
    assert trained == [str(every[4].directory), str(every[5].directory)]
    assert [cell.result() is not None for cell in every] == [False] * 4 + [True, False]


def test_a_cell_that_another_process_is_at_is_passed_over(every, monkeypatch):
    trained = train_with(monkeypatch, [RunLocked("another host's")])
    with run._claimed(every[2]) as mine:
        assert mine
        assert run.run_cells(every, 0) == 0
    assert every[0].result() is None
    assert every[2].result() is None
    assert len(trained) == 5
    with run._claimed(every[2]) as mine:
        assert mine
