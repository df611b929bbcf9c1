"""Runs whose tokens pass different layers: trained, resumed, evaluated, sampled and adapted."""

import math
from pathlib import Path

import numpy as np
import pytest

from jaxformer.evaluate.perplexity import validate
from jaxformer.model.parameter_paths import by_path
from jaxformer.run import load
from jaxformer.train.run import train
from tests.runs import MODEL, assert_same_arrays, make_config, results, saved_arrays
from tests.train.test_loop import signal_at_step

MIXTURE = {"kind": "mixture", "capacity": 0.5}
RECURSION = {"kind": "recursion", "turns": 2, "before": 0}
SHORT = {"train": {"steps": 4, "log_every": 1}, "eval": {"every": 2}, "checkpoint": {"every": 2}}


def run_of(folder: Path, name: str, depth: dict, **sections: dict) -> Path:
    """Train four steps; the run's directory."""
    model = MODEL | {"num_layers": 2, "pattern": [{}, {}], "depth": depth}
    sections = SHORT | {"model": model, "run": {"dir": str(folder / name)}} | sections
    assert train(make_config(folder, **sections)) == 0
    return folder / name


@pytest.mark.parametrize(("depth", "said"), [(MIXTURE, "routed"), (RECURSION, "turns")])
def test_a_run_resumes_bitwise_and_is_evaluated_and_sampled(
    tmp_path: Path, depth: dict, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run_of(tmp_path, "straight", depth)
    with monkeypatch.context() as patch:
        signal_at_step(patch, 2)
        with pytest.raises(AssertionError):
            run_of(tmp_path, "resumed", depth)
    resumed = run_of(tmp_path, "resumed", depth)
    assert_same_arrays(saved_arrays(straight, 4), saved_arrays(resumed, 4))
    assert results(straight) == results(resumed)

    rows = [row for row in results(straight) if f"layers/{said}" in row]
    expected = {"routed": 0.5, "turns": 1.5}[said]
    assert [row[f"layers/{said}"] for row in rows] == pytest.approx([expected] * 4)
    assert all(0 <= row["layers/predicted"] <= 1 for row in rows)
    run = load(straight)
    assert math.isfinite(validate(run).loss)
    assert len(run.generate("ab", max_new_tokens=20, seed=1).encode()) >= 20


def test_a_plain_run_starts_a_mixture_which_adapters_adapt(tmp_path: Path) -> None:
    """Of the same pattern, so that paths agree; routers and predictors start fresh."""
    plain = run_of(tmp_path, "plain", {"kind": "fixed"})
    init = {"from": str(plain), "partial": ["*/routing/*"]}
    mixture = run_of(tmp_path, "mixture", MIXTURE, init=init)
    adapted = run_of(tmp_path, "adapted", MIXTURE, init={"from": str(mixture)}, lora={"rank": 2})
    before, after = (by_path(load(path).params) for path in (mixture, adapted))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if "/mixer/" in path and "norm" not in path}
