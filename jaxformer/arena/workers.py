"""Processes that share the cells of an arena, and the one that watches them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from jaxformer.arena.cells import Cell, without_result
from jaxformer.terminal import progress, say

DONE, FAILED, STOPPED = 0, 1, 75
LOOK_SECONDS = 0.5


def keep_to_cores(worker: int, workers: int) -> None:
    """Keep this worker to its own cores; to be called before JAX starts its threads. On a system
    that cannot do this, workers share all cores."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[worker::workers] or cores)


def stop_with(parent: int) -> None:
    """Stop this worker, as SIGTERM does, once `parent` is no longer its parent: a parent that was
    killed could not pass a signal on."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, name="parent", daemon=True).start()


def _command(command: Sequence[str], worker: int, workers: int) -> list[str]:
    share = ["--worker", str(worker), "--workers", str(workers), "--parent", str(os.getpid())]
    return [sys.executable, "-m", "jaxformer", *command, *share]


def run_workers(command: Sequence[str], workers: int, cells: Sequence[Cell]) -> int:
    """Start `command --worker I` for every I, and show how many cells have ended.

    A signal is passed on: workers save their cells and stop.

    Returns:
        The exit code: 75 if a worker was stopped, else 1 if one failed or was killed, else 0.
    """
    processes = [
        subprocess.Popen(
            _command(command, worker, workers),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        for worker in range(workers)
    ]
    try:
        with progress("cells", len(cells)) as report:
            left = without_result(cells)
            while any(process.poll() is None for process in processes):
                time.sleep(LOOK_SECONDS)
                left = without_result(left)
                report(len(cells) - len(left))
    except BaseException:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()
        raise
    codes = [process.returncode for process in processes]
    for worker, code in enumerate(codes):
        if code < 0:
            memory = " (by the system, out of memory? Fewer --workers need less)"
            name = signal.Signals(-code).name
            say(f"worker {worker} was killed by {name}{memory if name == 'SIGKILL' else ''}")
    if STOPPED in codes:
        return STOPPED
    return FAILED if any(codes) else DONE
