"""Suites within a run: `eval.suites`."""

import os
import signal

import pytest

from jaxformer.errors import UserError
from jaxformer.evaluate import suites
from jaxformer.evaluate.suite import Check, Result
from jaxformer.run import Run
from jaxformer.train.metrics import read_rows
from jaxformer.train.run import train
from tests.runs import make_config


def suite_rows(run: str) -> list[dict]:
    return [row for row in read_rows(run / "metrics.jsonl") if any("suite/" in key for key in row)]


def test_suites_are_measured_at_their_steps_and_at_the_end(tmp_path):
    config = make_config(tmp_path, eval={"suites": ["validation"], "suites_every": 8})
    assert train(config) == 0
    rows = suite_rows(tmp_path / "run")
    assert [row["step"] for row in rows] == [8, 12]
    losses = {
        row["step"]: row["eval/loss"]
        for row in read_rows(tmp_path / "run" / "metrics.jsonl")
        if "eval/loss" in row
    }
    for row in rows:
        assert row["suite/validation/loss"] == losses[row["step"]]
        assert row.keys() == {
            "step",
            "suite/validation/loss",
            "suite/validation/perplexity",
            "suite/validation/bits_per_byte",
        }


def test_a_signal_within_a_suite_stops_the_run_which_then_measures_it(tmp_path, monkeypatch):
    measured = []

    def suite(run: Run, check: Check) -> dict[str, Result]:
        if not measured:
            os.kill(os.getpid(), signal.SIGTERM)
        measured.append(run.step)
        check()
        return {"kind:steps": Result({"count": float(run.step)})}

    monkeypatch.setitem(suites.SUITES, "kind", lambda what, options: suite)
    config = make_config(tmp_path, eval={"suites": ["kind:steps"], "suites_every": 6})
    assert train(config) == 75
    assert suite_rows(tmp_path / "run") == []
    assert train(config) == 0
    assert measured == [6, 6, 12]
    assert suite_rows(tmp_path / "run") == [
        {"step": 6, "suite/steps/count": 6.0},
        {"step": 12, "suite/steps/count": 12.0},
    ]


def test_a_suite_that_fails_costs_no_step(tmp_path, monkeypatch):
    def suite(run: Run, check: Check) -> dict[str, Result]:
        raise UserError("the task does not fit")

    monkeypatch.setitem(suites.SUITES, "kind", lambda what, options: suite)
    config = make_config(tmp_path, eval={"suites": ["kind:steps"]}, checkpoint={"every": 100})
    with pytest.raises(UserError, match="does not fit"):
        train(config)
    assert (tmp_path / "run" / "checkpoints" / "12").is_dir()


def test_an_unknown_suite_is_refused_before_anything_is_written(tmp_path):
    config = make_config(tmp_path, eval={"suites": ["validatoin"]})
    with pytest.raises(UserError, match="suite 'validatoin' is unknown; allowed: validation, "):
        train(config)
    assert not (tmp_path / "run").exists()
