"""A run as a real process, evaluated by others; those that are disturbed stand in tests/faults."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxformer.cli import main
from jaxformer.train.metrics import read_rows
from tests.runs import (
    REPOSITORY,
    finish,
    make_config,
    start_training,
    write_config,
)

AS_A_USER = {"XLA_FLAGS": ""}  # without those that make tests compile quickly


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    config = make_config(folder, train={"steps": 200}, eval={"every": 100})
    code, output = finish(
        start_training(write_config(config, folder / "config.yaml"), environment=AS_A_USER)
    )
    assert code == 0, output
    return folder / "run"


@pytest.fixture
def evaluate(capsys):
    """`eval` in this process: what it printed, as JSON."""

    def evaluated(*arguments: object) -> dict:
        assert main(["eval", *map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return evaluated


def test_eval_gives_the_runs_own_figures_whatever_the_batch_size(run, evaluate):
    last = [row for row in read_rows(run / "metrics.jsonl") if "eval/loss" in row][-1]
    found = {size: evaluate(run, f"eval.batch_size={size}") for size in (4, 7)}
    assert found[7]["loss"] == pytest.approx(found[4]["loss"], rel=1e-6)
    assert found[7]["tokens"] == found[4]["tokens"]
    assert found[4]["step"] == 200
    part = evaluate(run / "checkpoints" / "200", "eval.batches=2")
    assert part["loss"] == pytest.approx(last["eval/loss"], rel=1e-6)


def test_eval_prints_a_table(run):
    finished = subprocess.run(
        [sys.executable, "eval.py", run],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    for line in (
        "the last 0.",
        "loss (nats per token)",
        "perplexity",
        "bits per byte",
        "tokens per second",
    ):
        assert line in finished.stdout


def test_eval_asks_for_needles_in_the_runs_own_text(run, evaluate):
    found = evaluate(run, "--suite", "synthetic:needle", "data.sequence_length=128")["results"]
    assert list(found) == ["needle at 128", "needle at 256", "needle at 512"]
    assert all(0 <= result["accuracy"] < 0.5 for result in found.values())
    assert all(result["row_accuracy"] == 0 for result in found.values())
    assert all(result["rows"] == 1024 for result in found.values())


def test_eval_takes_another_text(run, evaluate, tmp_path):
    (tmp_path / "other.txt").write_text("0123456789" * 30)
    own = evaluate(run)
    other = evaluate(run, f"data.validation_source=text:{tmp_path}/other.txt")
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
def test_a_mistake_in_eval_is_one_message_and_exit_code_2(run, arguments, message, capsys):
    assert main(["eval", *(argument.replace("RUN", str(run)) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message.replace("RUN", str(run)) in error
    assert "Traceback" not in error
