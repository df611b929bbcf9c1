"""Runs as real processes: killed, stopped, resumed, evaluated."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxformer.train.metrics import read_rows
from tests.runs import (
    REPOSITORY,
    assert_same_arrays,
    finish,
    make_config,
    results,
    saved_arrays,
    start_training,
    write_config,
)

# Long enough to be killed in, with a save every few hundredths of a second.
LONG = {
    "train": {"steps": 400, "log_every": 7},
    "eval": {"every": 60},
    "checkpoint": {"every": 20},
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A configuration's file, and the run directory of a process that was left alone."""
    folder = tmp_path_factory.mktemp("runs")
    config = write_config(make_config(folder, **LONG), folder / "config.yaml")
    code, output = finish(start_training(config))
    assert code == 0, output
    return config, folder / "run"


def wait_for_rows(run: Path, count: int, process: subprocess.Popen, timeout: float = 90.0) -> None:
    """Until metrics.jsonl has this many rows more than now, or the process has ended."""
    path = run / "metrics.jsonl"
    before = len(read_rows(path))
    deadline = time.monotonic() + timeout
    while process.poll() is None and len(read_rows(path)) < before + count:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_killed_at_random_moments_a_run_ends_as_if_it_had_been_left_alone(uninterrupted):
    config, left_alone = uninterrupted
    run = left_alone.with_name("killed")
    moment = random.Random(0)
    kills = 0
    for _ in range(4):
        process = start_training(config, f"run.dir={run}")
        wait_for_rows(run, 2, process)
        time.sleep(moment.uniform(0.0, 0.6))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert kills >= 3
    code, output = finish(start_training(config, f"run.dir={run}"))
    assert code == 0, output
    assert results(run) == results(left_alone)
    assert_same_arrays(saved_arrays(run, 400), saved_arrays(left_alone, 400))


def test_sigterm_saves_and_exits_with_75_and_the_same_command_goes_on(uninterrupted):
    config, left_alone = uninterrupted
    run = left_alone.with_name("stopped")
    for number in (signal.SIGTERM, signal.SIGINT):
        process = start_training(config, f"run.dir={run}")
        wait_for_rows(run, 3, process)
        process.send_signal(number)
        sent = time.monotonic()
        code, output = finish(process)
        assert code == 75, output
        assert time.monotonic() - sent < 30
        assert f"{signal.Signals(number).name}: saving step" in output
        assert f"to resume:   python train.py {run}/config.yaml" in output
    code, output = finish(start_training(run / "config.yaml"))
    assert code == 0, output
    assert "resumed from" in output
    assert results(run) == results(left_alone)
    assert_same_arrays(saved_arrays(run, 400), saved_arrays(left_alone, 400))


def test_sigterm_while_compiling_saves_at_once(tmp_path):
    config = make_config(
        tmp_path, model={"num_layers": 12}, train={"unroll_layers": True, "steps": 7}
    )
    process = start_training(
        write_config(config, tmp_path / "config.yaml"),
        environment={"JAX_ENABLE_COMPILATION_CACHE": "false"},
    )
    lines = []
    while not lines or not lines[-1].startswith("peak"):
        lines.append(process.stdout.readline())
        assert lines[-1], "".join(lines)
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    code, output = finish(process)
    assert code == 75, output
    assert time.monotonic() - sent < 30
    assert "compiled in" not in output
    assert (tmp_path / "run" / "checkpoints" / "0").is_dir()


def evaluate(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "eval.py", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def test_eval_gives_the_runs_own_figures_whatever_the_batch_size(uninterrupted):
    _, run = uninterrupted
    last = [row for row in read_rows(run / "metrics.jsonl") if "eval/loss" in row][-1]
    found = {}
    for size in (4, 7):
        finished = evaluate(run, "--json", f"eval.batch_size={size}")
        assert finished.returncode == 0, finished.stderr
        found[size] = json.loads(finished.stdout)
    assert found[7]["loss"] == pytest.approx(found[4]["loss"], rel=1e-6)
    assert found[7]["tokens"] == found[4]["tokens"]
    assert found[4]["step"] == 400
    part = evaluate(run / "checkpoints" / "400", "--json", "eval.batches=2")
    assert json.loads(part.stdout)["loss"] == pytest.approx(last["eval/loss"], rel=1e-6)


def test_eval_prints_a_table(uninterrupted):
    _, run = uninterrupted
    finished = evaluate(run)
    assert finished.returncode == 0, finished.stderr
    for line in ("loss (nats per token)", "perplexity", "bits per byte", "tokens per second"):
        assert line in finished.stdout


def test_eval_takes_another_text(uninterrupted, tmp_path):
    _, run = uninterrupted
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
        (["RUN", "model.d_model=32"], "RUN/checkpoints/400 does not fit: its ema differ in"),
        (["RUN", "data.tokeniser=x"], "Did you mean 'tokenizer'?"),
    ],
)
def test_a_mistake_in_eval_is_one_message_and_exit_code_2(uninterrupted, arguments, message):
    _, run = uninterrupted
    finished = evaluate(*(argument.replace("RUN", str(run)) for argument in arguments))
    assert finished.returncode == 2
    assert message.replace("RUN", str(run)) in finished.stderr
    assert "Traceback" not in finished.stderr
