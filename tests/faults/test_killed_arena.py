"""An arena as a real process, killed and run again."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml
from arena.test_match import BASE

STOPPED = 75


def write_arena(folder: Path) -> Path:
    base = BASE | {
        "train": {"steps": 300, "batch_size": 8, "unroll_layers": False},
        "eval": {"every": 1000, "batches": 2, "sample_tokens": 0},
        "checkpoint": {"every": 50, "keep_best": 0},
    }
    arena = {
        "baseline": "attention",
        "base": base,
        "contestants": {"attention": {}, "window": {"model": {"mixer": {"window": 8}}}},
        "tasks": {"parity": {"lengths": [1, 2]}},
        "learning_rates": [1e-3],
        "seeds": [0, 1],
        "dir": str(folder / "arena"),
    }
    file = folder / "arena.yaml"
    file.write_text(yaml.safe_dump(arena))
    return file


def start(file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jaxformer", "arena", str(file), "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def results(folder: Path) -> dict[str, float]:
    """When each cell's result was written."""
    return {str(file): file.stat().st_mtime for file in folder.rglob("result.json")}


def test_a_killed_arena_goes_on_where_it_was_and_repeats_no_cell(tmp_path):
    file, folder = write_arena(tmp_path), tmp_path / "arena"
    process = start(file)
    second = folder / "parity/attention/lr_0.001/seed_1/checkpoints/50"
    while process.poll() is None and not second.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)  # its worker sees that it is gone, and saves
    output = process.communicate()[0]
    before = results(folder)
    assert len(before) == 1, output
    code = STOPPED
    while code == STOPPED:  # the old worker may still be at its cell
        process = start(file)
        output, code = process.communicate(timeout=120)[0], process.returncode
    assert code == 0, output
    after = results(folder)
    assert len(after) == 4
    assert before.items() <= after.items()
    log = (folder / "parity/attention/lr_0.001/seed_1/log.txt").read_text()
    assert "resumed from" in log
    for result in after:
        found = json.loads(Path(result).read_text())
        assert found["failed"] is None
        assert [test["multiple"] for test in found["tests"]] == [1, 2]
        assert [row[0] for row in found["curve"]] == [1, *range(10, 301, 10)]
    assert (folder / "report.html").stat().st_size > 10_000
