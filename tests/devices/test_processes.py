"""Real processes on the loopback: the same losses, and what happens when one of them does not go
on as it should."""

import itertools
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxformer.cli import main
from jaxformer.config import Config
from jaxformer.parallel import processes
from jaxformer.train.metrics import read_rows
from jaxformer.train.run import train
from tests.checkpoint.test_manager import flip, largest_file
from tests.parallel.test_rendezvous import free_port
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

TIMEOUT = 10
HERE = socket.gethostname()
STEPS = 120


def start(
    config: Path, count: int, *overrides: str, script: str = "train.py"
) -> list[subprocess.Popen[str]]:
    flags = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(count)]
    flags += ["--peer-timeout", str(TIMEOUT), *overrides]
    return [
        start_training(config, *flags, "--process", str(index), script=script)
        for index in range(count)
    ]


def finish_all(started: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Exit codes and outputs."""
    ended = [finish(process, timeout=300) for process in started]
    return [code for code, _ in ended], [output for _, output in ended]


def wait_for_rows(run: Path, count: int, started: list[subprocess.Popen[str]]) -> None:
    """Until metrics.jsonl has this many rows more than now."""
    path = run / "metrics.jsonl"
    before, deadline = len(read_rows(path)), time.monotonic() + 300
    while len(read_rows(path)) < before + count:
        assert all(process.poll() is None for process in started)
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_near(run: Path, other: Path) -> None:
    """The same rows but for the order of additions."""
    ours, theirs = results(run), results(other)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for one, same in zip(ours, theirs, strict=True):
        assert one == pytest.approx(same, rel=1e-5)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    return make_config(
        tmp_path_factory.mktemp("processes"),
        train={"steps": STEPS, "log_every": 3},
        eval={"every": 40},
        checkpoint={"every": 15},
    )


@pytest.fixture(scope="module")
def file(config) -> Path:
    return write_config(config, Path(config.run.dir).with_name("config.yaml"))


@pytest.fixture(scope="module")
def alone(config) -> Path:
    """The run of one process."""
    assert train(config) == 0
    return Path(config.run.dir)


@pytest.fixture(scope="module")
def together(file) -> Path:
    """The run of two processes that were left alone."""
    run = file.with_name("together")
    keys = [f"data.cache_dir={file.with_name('cold')}", "eval.sample_tokens=8"]
    started = start(file, 2, f"run.dir={run}", *keys)
    codes, outputs = finish_all(started)
    assert codes == [0, 0], outputs
    assert "process 0 of 2 by flags, coordinated at 127.0.0.1:" in outputs[0]
    assert "data 2, stage 1, fsdp 1" in outputs[0]
    assert "a sample:" in outputs[0]
    assert outputs[1] == ""
    return run


def test_two_processes_have_the_losses_of_one(alone, together):
    assert_near(together, alone)
    manifest = json.loads((together / "manifest.json").read_text())
    assert manifest["mesh"]["data"] == 2
    assert len(list((together / "tensorboard").glob("events.*"))) == 1


def test_two_processes_evaluate_as_one_does(together, capsys):
    codes, outputs = finish_all(start(together, 2, "--json", script="eval.py"))
    assert codes == [0, 0], outputs
    assert outputs[1] == ""
    assert main(["eval", str(together), "--json"]) == 0
    two, one = (json.loads(text.splitlines()[-1]) for text in (outputs[0], capsys.readouterr().out))
    assert two["tokens"] == one["tokens"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)


def test_all_processes_pass_over_a_damaged_checkpoint(file, together):
    run = file.with_name("damaged")
    shutil.copytree(together, run)
    newest = run / "checkpoints" / str(STEPS)
    flip(largest_file(newest))
    codes, outputs = finish_all(start(run, 2, "--json", script="eval.py"))
    assert codes == [0, 0], outputs
    assert f"warning: checkpoint {newest} is damaged: " in outputs[0]
    assert json.loads(outputs[0].splitlines()[-1])["step"] == STEPS - 15
    codes, outputs = finish_all(start(file, 2, f"run.dir={run}"))
    assert codes == [0, 0], outputs
    assert f"(it is now {newest}.damaged)" in outputs[0]
    assert f"resumed from {run}/checkpoints/{STEPS - 15}" in outputs[0]
    assert_same_arrays(saved_arrays(run, STEPS), saved_arrays(together, STEPS))


def test_four_processes_of_which_two_hold_the_same_rows_have_the_losses_of_one(file, alone):
    run = file.with_name("four")
    axes = ["mesh.data=1", "mesh.fsdp=2", "mesh.context=2"]
    codes, outputs = finish_all(start(file, 4, f"run.dir={run}", "train.steps=3", *axes))
    assert codes == [0] * 4, outputs
    ours = [row["loss"] for row in results(run) if "loss" in row]
    assert ours == pytest.approx([row["loss"] for row in results(alone)[:2]], rel=1e-5)


def test_killed_stopped_and_resumed_a_run_ends_as_if_it_had_been_left_alone(file, together):
    run = file.with_name("killed")

    started = start(file, 2, f"run.dir={run}")
    wait_for_rows(run, 8, started)
    started[1].kill()
    killed = time.monotonic()
    codes, outputs = finish_all(started)
    assert time.monotonic() - killed < 60
    assert codes == [1, -signal.SIGKILL]
    missing = f"error: process 1 ({HERE}) has not answered for {TIMEOUT} s, last seen at step "
    assert missing in outputs[0], outputs[0]

    started = start(file, 2, f"run.dir={run}")
    wait_for_rows(run, 5, started)
    started[1].send_signal(signal.SIGTERM)
    codes, outputs = finish_all(started)
    assert codes == [75, 75], outputs
    assert "SIGTERM: saving step" in outputs[0]

    codes, outputs = finish_all(start(file, 2, f"run.dir={run}"))
    assert codes == [0, 0], outputs
    assert "resumed from" in outputs[0]
    assert results(run) == results(together)
    assert_same_arrays(saved_arrays(run, STEPS), saved_arrays(together, STEPS))


def test_every_process_takes_a_profile_and_all_save_at_the_step_that_the_clock_says(
    file, together, capsys
):
    run = file.with_name("profiled")
    keys = ["checkpoint.every=1000", "checkpoint.every_minutes=0.01", "checkpoint.keep_newest=9"]
    profile = "train.profile={start: 5, steps: 2}"
    codes, outputs = finish_all(start(file, 2, f"run.dir={run}", profile, *keys))
    assert codes == [0, 0], outputs
    assert results(run) == results(together)
    assert_same_arrays(saved_arrays(run, STEPS), saved_arrays(together, STEPS))
    saved = {int(each.name) for each in (run / "checkpoints").iterdir()}
    assert saved > {STEPS}
    for process in range(2):
        capsys.readouterr()
        assert main(["profile", str(run), "--json", "--process", str(process)]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["process"], found["devices"], list(found["steps"])) == (
            process,
            1,
            ["5", "6"],
        )
        assert "collectives" in {part["name"] for part in found["parts"]}


# Two processes that do nothing but pass points, without what training takes to start.
WALK = """
import sys, time
from jaxformer.parallel.processes import common_stop, joined
with joined(sys.argv[1], 2, int(sys.argv[2]), float(sys.argv[3])):
    print("ready", file=sys.stderr, flush=True)
    for step in range(10_000):
        time.sleep(0.01)
        common_stop().due(step)
"""


def walk() -> list[subprocess.Popen[str]]:
    coordinator = f"127.0.0.1:{free_port()}"
    return [
        subprocess.Popen(
            [sys.executable, "-c", WALK, coordinator, str(index), str(TIMEOUT)],
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


def test_a_process_that_is_gone_or_stands_still_is_named_by_the_others():
    silent = f"has not answered for {TIMEOUT} s, last seen at step "
    cases = [
        (0, signal.SIGKILL, f"error: process 0 ({HERE}) is gone, last seen at step "),
        (0, signal.SIGSTOP, f"error: process 0 ({HERE}) {silent}"),
        (1, signal.SIGSTOP, f"error: process 1 ({HERE}) {silent}"),
    ]
    pairs = [walk() for _ in cases]
    for process in itertools.chain(*pairs):
        while process.stderr.readline() != "ready\n":
            assert process.poll() is None
    sent = time.monotonic()
    for pair, (victim, number, _) in zip(pairs, cases, strict=True):
        pair[victim].send_signal(number)
    for pair, (victim, _, message) in zip(pairs, cases, strict=True):
        _, errors = pair[1 - victim].communicate(timeout=60)
        assert pair[1 - victim].returncode == 1
        assert message in errors
        pair[victim].kill()
        pair[victim].communicate()
    assert time.monotonic() - sent < 60


def test_another_configuration_in_one_process_is_refused_in_all(file):
    run = file.with_name("refused")
    flags = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", f"run.dir={run}"]
    started = [
        start_training(file, *flags, "--process", str(index), f"train.seed={index}")
        for index in range(2)
    ]
    codes, outputs = finish_all(started)
    assert codes == [2, 2], outputs
    difference = f"config.train.seed: 0 in process 0 ({HERE}), 1 here"
    assert difference in outputs[0]
    assert difference in outputs[1]
    assert f"error: process 1 ({HERE}) failed: the configuration, code or data of" in outputs[0]
    assert "Traceback" not in outputs[0] + outputs[1]
    assert not run.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--processes", "2", "--process", "0"],
            "--coordinator, --processes, --process go together, and --coordinator is missing",
        ),
        (
            ["--coordinator", "here:1", "--processes", "2", "--process", "2"],
            "--process is 2; allowed: 0 to 1, for --processes 2",
        ),
        (
            ["--coordinator", "here", "--processes", "2", "--process", "0"],
            "--coordinator is 'here'; give process 0's HOST:PORT",
        ),
    ],
)
def test_a_part_of_a_place_is_refused(file, capsys, flags, message):
    assert main(["train", str(file), *flags]) == 2
    assert message in capsys.readouterr().err


def test_slurm_gives_each_process_its_place(monkeypatch):
    environment = {
        "SLURM_JOB_ID": "4096",
        "SLURM_STEP_NODELIST": "node[007-010]",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "0",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes._detected() == processes.Place("node007:61440", 4, 3, "slurm")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert processes._detected() is None
