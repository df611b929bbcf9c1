"""A run as a real process, evaluated by others; those that are disturbed stand in tests/faults."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxformer.train.metrics import read_rows
from tests.runs import (
    REPOSITORY,
    finish,
    make_config,
    start_training,
    write_config,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    config = make_config(folder, train={"steps": 200}, eval={"every": 100})
    code, output = finish(start_training(write_config(config, folder / "config.yaml")))
    assert code == 0, output
    return folder / "run"


def evaluate(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "eval.py", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def test_eval_gives_the_runs_own_figures_whatever_the_batch_size(run):
    last = [row for row in read_rows(run / "metrics.jsonl") if "eval/loss" in row][-1]
    found = {}
    for size in (4, 7):
        finished = evaluate(run, "--json", f"eval.batch_size={size}")
        assert finished.returncode == 0, finished.stderr
        found[size] = json.loads(finished.stdout)
    assert found[7]["loss"] == pytest.approx(found[4]["loss"], rel=1e-6)
    assert found[7]["tokens"] == found[4]["tokens"]
    assert found[4]["step"] == 200
    part = evaluate(run / "checkpoints" / "200", "--json", "eval.batches=2")
    assert json.loads(part.stdout)["loss"] == pytest.approx(last["eval/loss"], rel=1e-6)


def test_eval_prints_a_table(run):
    finished = evaluate(run)
    assert finished.returncode == 0, finished.stderr
    for line in ("loss (nats per token)", "perplexity", "bits per byte", "tokens per second"):
        assert line in finished.stdout


def test_eval_asks_for_needles_in_the_runs_own_text(run):
    finished = evaluate(run, "--suite", "synthetic:needle", "--json", "data.sequence_length=128")
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)["results"]
    assert list(found) == ["needle at 128", "needle at 256", "needle at 512"]
    assert all(0 <= result["accuracy"] < 0.5 for result in found.values())
    assert all(result["row_accuracy"] == 0 for result in found.values())
    assert all(result["rows"] == 1024 for result in found.values())


def test_eval_takes_another_text(run, tmp_path):
    (tmp_path / "other.txt").write_text("0123456789" * 30)
    own, other = (
        json.loads(evaluate(run, "--json", *overrides).stdout)
        for overrides in ([], [f"data.validation_source=text:{tmp_path}/other.txt"])
    )
    assert other["tokens"] == 301  # the text and its end
    assert other["loss"] > own["loss"] + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist; give a run directory"),
        (["RUN", "model.d_model=32"], "RUN/checkpoints/200 does not fit: its ema differ in"),
        (["RUN", "data.tokeniser=x"], "Did you mean 'tokenizer'?"),
        (["RUN", "--suite", "synthetic:needel"], "Did you mean 'needle'?"),
        (["RUN", "--suite", "synthetic:needle"], "sequence_length 16 is too short"),
    ],
)
def test_a_mistake_in_eval_is_one_message_and_exit_code_2(run, arguments, message):
    finished = evaluate(*(argument.replace("RUN", str(run)) for argument in arguments))
    assert finished.returncode == 2
    assert message.replace("RUN", str(run)) in finished.stderr
    assert "Traceback" not in finished.stderr
