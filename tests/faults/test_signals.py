"""SIGTERM, whatever a run is doing: a complete checkpoint, exit code 75, and the same run after."""

import signal
import subprocess
import time
from pathlib import Path

from jaxformer.train.metrics import read_rows
from tests.faults.disturbed import unfinished, wait_for_rows, wait_for_save, wait_until
from tests.runs import (
    assert_same_arrays,
    finish,
    make_config,
    results,
    saved_arrays,
    start_training,
    write_config,
)

# Half a second and more to save, on any disk.
WIDE = {"d_model": 512, "ffn": {"kind": "swiglu", "d_hidden": 4096}}


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> str:
    """Signal the run; what it says while it saves and ends."""
    process.send_signal(number)
    sent = time.monotonic()
    code, output = finish(process)
    assert code == 75, output
    assert time.monotonic() - sent < 30
    return output


def test_a_signal_between_steps_or_in_a_save_saves_and_the_same_command_goes_on(undisturbed):
    run = undisturbed.run.with_name("stopped")
    for number, disturbs_a_save in ((signal.SIGTERM, True), (signal.SIGINT, False)):
        process = undisturbed.start(run)
        wait_for_rows(run, 3, process)
        if disturbs_a_save:
            wait_for_save(run, process)
        output = stop(process, number)
        assert f"{signal.Signals(number).name}: saving step" in output
        assert f"to resume:   jaxformer train {run}/config.yaml" in output
        assert not unfinished(run)
    code, output = finish(start_training(run / "config.yaml"), timeout=1200)
    assert code == 0, output
    assert "resumed from" in output
    undisturbed.assert_equals(run)


def test_sigterm_while_compiling_saves_at_once(tmp_path):
    config = make_config(
        tmp_path, model={"num_layers": 12}, train={"unroll_layers": True, "steps": 7}
    )
    process = start_training(
        write_config(config, tmp_path / "config.yaml"),
        environment={"JAX_ENABLE_COMPILATION_CACHE": "false"},
    )
    read_until(process, "peak")
    time.sleep(1.5)
    assert "compiled in" not in stop(process)
    assert (tmp_path / "run" / "checkpoints" / "0").is_dir()


def test_sigterm_during_an_evaluation_saves_and_the_evaluation_is_made_later(tmp_path):
    config = make_config(
        tmp_path,
        data={"validation_fraction": 0.5},
        train={"steps": 8, "log_every": 4},
        eval={"every": 4, "batches": None, "batch_size": 1},
    )
    file = write_config(config, tmp_path / "config.yaml")
    run, left_alone = tmp_path / "run", tmp_path / "left alone"
    process = start_training(file)
    wait_until(lambda: any(row["step"] == 4 for row in read_rows(run / "metrics.jsonl")), process)
    assert "SIGTERM: saving step 4;" in stop(process)
    assert not any("eval/loss" in row for row in read_rows(run / "metrics.jsonl"))
    for directory in (run, left_alone):
        code, output = finish(start_training(file, f"run.dir={directory}"))
        assert code == 0, output
    assert results(run) == results(left_alone)
    assert_same_arrays(saved_arrays(run, 8), saved_arrays(left_alone, 8))


def test_a_second_signal_ends_a_save_at_once(tmp_path):
    config = make_config(tmp_path, model=WIDE, eval={"every": 12}, checkpoint={"every": 12})
    file = write_config(config, tmp_path / "config.yaml")
    process = start_training(file)
    wait_for_rows(tmp_path / "run", 2, process)
    process.send_signal(signal.SIGTERM)
    read_until(process, "SIGTERM: saving step")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=5) == -signal.SIGTERM
    process.stdout.close()
    assert saved(tmp_path / "run") == []


def saved(run: Path) -> list[str]:
    return [path.name for path in (run / "checkpoints").iterdir() if path.name.isdecimal()]


def read_until(process: subprocess.Popen[str], beginning: str) -> None:
    """Until the run says a line that begins so."""
    lines = [""]
    while not lines[-1].startswith(beginning):
        lines.append(process.stdout.readline())
        assert lines[-1], "".join(lines)
