"""Processes that share the cells of an arena, and the one that looks on."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from jaxformer.arena.cells import Cell
from jaxformer.data.progress import progress

LOOK_SECONDS = 0.5


def keep_to_cores(worker: int, workers: int) -> None:
    """Leave the other workers their cores; before JAX starts its threads. Where the system cannot,
    nothing is done: workers then share all cores."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[worker::workers] or cores)


def stop_with(parent: int) -> None:
    """Stop this worker, as SIGTERM does, once `parent` is no more its parent: killed, it could
    not hand a signal on."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, name="parent", daemon=True).start()


def _share(worker: int, workers: int) -> list[str]:
    return ["--worker", str(worker), "--workers", str(workers), "--parent", str(os.getpid())]


def run_workers(command: Sequence[str], workers: int, cells: Sequence[Cell]) -> bool:
    """Start `command --worker I` for every I, and show how many cells have ended.

    A signal is handed on: workers save what they are at.

    Returns:
        Whether every worker ended well.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "jaxformer", *command, *_share(worker, workers)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        for worker in range(workers)
    ]
    try:
        with progress("cells", len(cells)) as report:
            while any(process.poll() is None for process in processes):
                report(sum(cell.result_file.exists() for cell in cells))
                time.sleep(LOOK_SECONDS)
            report(sum(cell.result_file.exists() for cell in cells))
    except BaseException:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()
        raise
    return all(process.returncode == 0 for process in processes)
