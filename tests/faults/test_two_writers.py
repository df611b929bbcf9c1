"""One writer a run: real processes on this machine, and owners that other hosts have left."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from jaxformer.checkpoint import lock
from jaxformer.checkpoint.lock import RunLock, check_no_writer, read_owner
from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.errors import RunFailed, UserError
from tests.runs import finish, make_config, start_training, write_config


def wait_for_step(process: subprocess.Popen[str]) -> str:
    """What it prints up to its first step."""
    lines = []
    while not lines or not lines[-1].startswith("step "):
        lines.append(process.stdout.readline())
        assert lines[-1], "".join(lines)
    return "".join(lines)


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path):
    file = write_config(make_config(tmp_path, train={"steps": 10_000}), tmp_path / "config.yaml")
    first, run = start_training(file), tmp_path / "run"
    wait_for_step(first)
    before = (run / "config.yaml").read_bytes()
    code, output = finish(start_training(file, "eval.every=7"))
    assert code == 2, output
    owner = f"process {first.pid} of {lock._user()} on {socket.gethostname()}, since "
    assert f"error: {run} has a writer already: {owner}" in output
    assert (run / "config.yaml").read_bytes() == before

    first.kill()
    first.communicate()
    third = start_training(file)
    assert f"the lock of {run} is taken over: {owner}" in wait_for_step(third)
    third.send_signal(signal.SIGTERM)
    code, output = finish(third)
    assert code == 75, output
    assert read_owner(run) is None


def leave_owner(run: Path, **fields: object) -> None:
    """As a writer leaves it that was killed."""
    owner = {"host": "elsewhere", "pid": 7, "user": "ada", "since": "noon", "beat": 3}
    run.mkdir(exist_ok=True)
    (run / "writer.json").write_text(json.dumps(owner | fields))


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "STALE_SECONDS", 1.0)


def test_the_lock_of_a_dead_process_of_this_host_is_taken_over_at_once(tmp_path, capsys):
    leave_owner(tmp_path, host=socket.gethostname())
    with RunLock(RunDirectory(tmp_path)):
        assert read_owner(tmp_path)[:2] == (socket.gethostname(), os.getpid())
    assert capsys.readouterr().err == (
        f"the lock of {tmp_path} is taken over: process 7 of ada on {socket.gethostname()}, since "
        "noon, is gone\n"
    )


def test_the_lock_of_another_host_is_taken_over_when_it_is_stale(tmp_path, capsys, fast):
    leave_owner(tmp_path)
    began = time.monotonic()
    with RunLock(RunDirectory(tmp_path)):
        assert time.monotonic() - began >= 1.0
    rule, taken = capsys.readouterr().err.splitlines()
    assert "is locked by process 7 of ada on elsewhere, since noon; it counts as gone when" in rule
    assert "writer.json has not changed for 1 s" in rule
    assert taken.endswith("process 7 of ada on elsewhere, since noon, is gone")


def test_a_writer_on_another_host_is_alive_while_its_number_grows(tmp_path, monkeypatch, fast):
    leave_owner(tmp_path)
    sleep = time.sleep

    def beat(seconds: float) -> None:
        sleep(seconds)
        leave_owner(tmp_path, beat=4)

    monkeypatch.setattr(lock.time, "sleep", beat)
    for _ in range(2):  # what a refused one holds is free again
        with pytest.raises(
            UserError, match=r"has a writer already: .* \(its writer.json changes\)"
        ):
            RunLock(RunDirectory(tmp_path)).__enter__()
        leave_owner(tmp_path, beat=3)


def test_a_writer_that_was_taken_for_dead_stops_and_leaves_the_lock(tmp_path, fast):
    with RunLock(RunDirectory(tmp_path)) as mine:
        mine.check()
        leave_owner(tmp_path)
        deadline = time.monotonic() + 30
        while mine._taken_by is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(RunFailed, match="was taken over by process 7 of ada on elsewhere"):
            mine.check()
    assert read_owner(tmp_path).host == "elsewhere"


def test_a_command_that_changes_what_is_saved_is_refused_beside_a_writer(tmp_path):
    check_no_writer(tmp_path)
    with RunLock(RunDirectory(tmp_path)), pytest.raises(UserError, match="has a writer already"):
        check_no_writer(tmp_path)
    check_no_writer(tmp_path)
    leave_owner(tmp_path)
    with pytest.raises(UserError, match=r"it may be alive; if not, remove .*/writer.json"):
        check_no_writer(tmp_path)
