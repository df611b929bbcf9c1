"""Makes the units of a store in several processes of this machine, which run `data.worker`.

A worker gets a line with the plan, then a line with a unit's number whenever it is free; it answers
with lines {"done": BYTES}, and at the end of a unit {"unit": NUMBER} or {"error": MESSAGE}. It ends
when its input does, so none outlives the process that started it.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from jaxformer.data.plans import Plan
from jaxformer.errors import RunFailed, UserError

PATIENCE_SECONDS = 2.0


def write_in_workers(
    plan: Plan, numbers: Sequence[int], count: int, cores: int, report: Callable[[int], None]
) -> None:
    """Make the units `numbers` in `count` processes; `report` gets the bytes read by all.

    The threads of all their tokenizers together are as many as the cores.

    Raises:
        UserError: a row is wrong.
        RunFailed: a worker was killed.
    """
    units: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in numbers:
        units.put(number)
    done = [0] * count  # bytes, by worker
    lock = threading.Lock()

    def add(worker: int, size: int) -> None:
        with lock:
            done[worker] += size
            report(sum(done))

    environment = {
        **os.environ,
        "RAYON_NUM_THREADS": str(max(1, cores // count)),
        "TOKENIZERS_PARALLELISM": "true",
        "JAX_PLATFORMS": "cpu",  # the accelerators are the run's
    }
    spec = json.dumps(
        {
            "source": plan.source.model_dump(mode="json"),
            "data": plan.data.model_dump(mode="json"),
            "shard_bytes": plan.shard_bytes,
            "key": plan.key,
        }
    )
    workers = [_Worker(environment, spec) for _ in range(count)]
    failures: list[BaseException] = []

    def run(place: int) -> None:
        try:
            while not failures:
                try:
                    number = units.get_nowait()
                except queue.Empty:
                    return
                workers[place].make(number, lambda size: add(place, size))
        except BaseException as error:  # raised below, in the thread that waits
            failures.append(error)

    running = [threading.Thread(target=run, args=(place,)) for place in range(count)]
    try:
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    finally:
        for worker in workers:
            worker.end()
    if failures:
        raise failures[0]


class _Worker:
    def __init__(self, environment: dict[str, str], spec: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jaxformer.data.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._send(spec)

    def make(self, number: int, report: Callable[[int], None]) -> None:
        self._send(str(number))
        before = 0
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer: dict[str, Any] = json.loads(line)
            if "error" in answer:
                raise UserError(answer["error"])
            if "unit" in answer:
                return
            report(answer["done"] - before)
            before = answer["done"]
        code = self._process.wait()
        raise RunFailed(
            f"a process that tokenised unit {number} ended with {code}"
            f"{' (killed: perhaps the memory was full)' if code == -9 else ''}; run the same "
            f"command again: what is done is kept"
        )

    def end(self) -> None:
        """Let it clear its folder away; one that does not end soon is killed."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died: whoever reads its answer is told
