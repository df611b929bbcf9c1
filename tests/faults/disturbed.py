"""Watching a run from outside, to disturb it at a chosen moment."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxformer.train.metrics import read_rows
from tests.runs import assert_same_arrays, finish, results, saved_arrays, start_training

SECONDS = 90.0  # what anything is waited for; a machine may be busy
SECRETS = {name: f"not-to-be-told-{name}" for name in ("HF_TOKEN", "WANDB_API_KEY")}


@dataclass(frozen=True)
class Undisturbed:
    """A configuration's file, and the run of a process that was left alone."""

    config: Path
    run: Path
    steps: int
    output: str

    def start(self, run: Path) -> subprocess.Popen[str]:
        """A run of the same configuration in another directory, or what goes on with it."""
        return start_training(self.config, f"run.dir={run}")

    def complete(self, run: Path) -> str:
        """Go on with a run to its end; what it says."""
        code, output = finish(self.start(run), timeout=1200)
        assert code == 0, output
        return output

    def assert_equals(self, run: Path) -> None:
        """To the last bit: losses, rates, norms, evaluations, parameters, optimizer, average."""
        assert results(run) == results(self.run)
        assert_same_arrays(saved_arrays(run, self.steps), saved_arrays(self.run, self.steps))


def wait_until(there: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Until it is so; looked at every two thousandths of a second."""
    deadline = time.monotonic() + SECONDS
    while not there():
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}:\n{process.stdout.read()}")
        assert time.monotonic() < deadline
        time.sleep(0.002)


def wait_for_rows(run: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until metrics.jsonl has this many rows more than now."""
    path = run / "metrics.jsonl"
    before = len(read_rows(path))
    wait_until(lambda: len(read_rows(path)) >= before + count, process)


def wait_for_save(run: Path, process: subprocess.Popen[str]) -> None:
    """Until a save has begun that had not when this was called."""
    before = unfinished(run)
    wait_until(lambda: unfinished(run) - before, process)


def unfinished(run: Path) -> set[str]:
    """The checkpoints that are being written, or were when their process ended."""
    return {path.name for path in (run / "checkpoints").glob("*.orbax-checkpoint-tmp")}
