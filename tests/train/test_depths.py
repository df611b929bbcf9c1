"""Runs of models whose depth is not fixed."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from jaxformer.config import Config
from jaxformer.run import load
from jaxformer.train.run import train
from tests.runs import assert_same_arrays, make_config, results, saved_arrays
from tests.train.test_loop import signal_at_step

RANDOM = {
    "kind": "loop",
    "before": 1,
    "turns": {"mean": 2.0, "most": 3},
    "inject": "concat",
    "noise": 0.5,
    "backward": 2,
}
PONDER = {"kind": "loop", "turns": 2, "halting": {"kind": "ponder", "prior": 0.5}}
EXITS = {"kind": "exits", "layer_dropout": 0.5, "exit_scale": 0.5}


def run_of(folder: Path, depth: dict, **sections: dict) -> Config:
    folder.mkdir()
    train_section = {"steps": 4, "log_every": 1, "accumulation": 2}
    return make_config(
        folder,
        model={"depth": depth},
        train=train_section | sections.pop("train", {}),
        checkpoint={"every": 2},
        **sections,
    )


@pytest.mark.parametrize(
    ("depth", "said"),
    [
        (RANDOM, {"layers/turns"}),
        (PONDER, {"layers/turns", "layers/halting_loss", "layers/exit_1", "layers/exit_2"}),
        (EXITS, {"layers/exit_1", "layers/exit_2"}),
    ],
    ids=["random turns", "ponder", "exits"],
)
def test_a_run_resumes_to_the_last_bit_and_its_model_generates(tmp_path, depth, said, monkeypatch):
    assert train(run_of(tmp_path / "whole", depth)) == 0
    stopped = run_of(tmp_path / "stopped", depth)
    with monkeypatch.context() as patch:
        signal_at_step(patch, 2)
        assert train(stopped) == 75
    assert train(stopped) == 0
    ours, theirs = (tmp_path / name / "run" for name in ("stopped", "whole"))
    assert_same_arrays(saved_arrays(ours, 4), saved_arrays(theirs, 4))
    rows = [row for row in results(ours) if "loss" in row]
    assert len(rows) == 4 and all(said <= row.keys() for row in rows)
    if "layers/turns" in said:
        assert all(1.0 <= row["layers/turns"] <= 3.0 for row in rows)
    evaluations = [row for row in results(ours) if "eval/loss" in row]
    turns = [row["eval/turns"] for row in evaluations if depth is PONDER]
    assert evaluations and all(1.0 <= mean <= 3.0 for mean in turns)
    assert len(load(ours).generate("ab", max_new_tokens=3).encode()) >= 3


def test_layers_of_a_loop_have_statistics_and_adapters(tmp_path):
    measured = {"train": {"layer_statistics": {"every": 2}}}
    assert train(run_of(tmp_path / "base", RANDOM, **measured)) == 0
    rows = [row for row in results(tmp_path / "base" / "run") if "layer" in row]
    assert [row["layer"] for row in rows] == [0, 1, None] * 2
    assert all(row["weight_rms"] > 0 for row in rows)
    assert rows[0]["turns"] is None and 1.0 <= rows[1]["turns"] <= 3.0

    adapters = {"init": {"from": str(tmp_path / "base" / "run")}, "lora": {"rank": 2}}
    assert train(run_of(tmp_path / "adapted", RANDOM, **adapters)) == 0
    arrays = saved_arrays(tmp_path / "adapted" / "run", 4)
    trained = [path for path in arrays if "lora" in path and path.endswith("['b']")]
    assert any("['shared']" in path for path in trained)
    assert all(abs(arrays[path]).max() > 0 for path in trained if path.startswith("params"))


def test_a_depth_with_exits_cannot_be_distilled_into(tmp_path):
    objective = {"objective": {"kind": "distillation", "teacher": "runs/teacher"}}
    with pytest.raises(ValidationError, match="model.depth exits is trained through several"):
        run_of(tmp_path / "student", EXITS, train=objective)
