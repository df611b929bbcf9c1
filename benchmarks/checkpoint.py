"""How long a checkpoint holds up training, and how long it takes to be safe and to come back.

    python benchmarks/checkpoint.py [--parameters 135000000] [--rounds 3] [--folder FOLDER]

The state is of random float32 parameters and Adam's two moments. Every round saves it waiting for
the disk, saves it in the background, restores it, and does the same by `np.save` (with an fsync)
and `np.load`, one file per array; so a noisy machine disturbs all alike. A save in the background
blocks until the state is copied, and is safe once it is on the disk with its hashes and manifest.
All reads may come from the page cache.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxformer.checkpoint.manager import Checkpoints, placed

ARRAYS, WIDTH = 30, 1024
TARGET = 0.1  # of a synchronous save


def state_of(parameters: int) -> dict[str, dict[str, Any]]:
    """Trees of about `parameters` numbers, and twice as many for the optimizer."""
    rows = max(1, parameters // ARRAYS // WIDTH)
    keys = iter(jax.random.split(jax.random.key(0), 3 * ARRAYS))
    trees = [
        {f"kernel_{i}": jax.random.normal(next(keys), (rows, WIDTH)) for i in range(ARRAYS)}
        for _ in range(3)
    ]
    return {"params": trees[0], "opt_state": {"mu": trees[1], "nu": trees[2]}}


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def save_arrays(state: Any, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number, leaf in enumerate(jax.tree.leaves(state)):
        with (folder / f"{number}.npy").open("wb") as file:
            np.save(file, np.asarray(leaf))
            file.flush()
            os.fsync(file.fileno())


def load_arrays(folder: Path) -> None:
    for file in folder.iterdir():
        jax.device_put(np.load(file, allow_pickle=False)).block_until_ready()


def measure(state: Any, folder: Path, step: int) -> dict[str, float]:
    """One round."""
    taken, wanted = {}, placed(state, jax.tree.map(lambda leaf: leaf.sharding, state))
    with Checkpoints(folder / "checkpoints") as checkpoints:

        def save(step: int) -> None:
            checkpoints.save(step, state, {"step": step}, {"config": {}}, None)

        def save_and_wait(step: int) -> None:
            save(step)
            checkpoints.wait()

        taken["save, waiting"] = seconds(lambda: save_and_wait(step))
        taken["np.save"] = seconds(lambda: save_arrays(state, folder / "arrays"))
        taken["save, blocked"] = seconds(lambda: save(step + 1))
        taken["save, until safe"] = taken["save, blocked"] + seconds(checkpoints.wait)
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        verified = seconds(lambda: checkpoints.verify(step + 1))
        taken["restore, not verified"] = seconds(
            lambda: jax.block_until_ready(checkpoints.restore(step + 1, wanted))
        )
        taken["restore, verified"] = verified + taken["restore, not verified"]
    taken["np.load"] = seconds(lambda: load_arrays(folder / "arrays"))
    return taken


def main() -> None:
    """Measure in turns, and print the medians beside numpy's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parameters", type=int, default=135_000_000, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--folder", help="where to write and clean up (default: /tmp or TMPDIR)")
    arguments = parser.parse_args()
    state = jax.block_until_ready(state_of(arguments.parameters))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    print(f"{size / 1e9:.3f} GB, {jax.devices()[0].device_kind}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rounds = [measure(state, Path(folder), 2 * turn) for turn in range(arguments.rounds)]
    medians = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    for name, median in medians.items():
        base = "np.load" if "restore" in name or "load" in name else "np.save"
        ratio = f"{median / medians[base]:.2f} × {base}"
        each = " ".join(f"{one[name]:.2f}" for one in rounds)
        print(f"{name:<22}{median:>8.2f} s {size / median / 1e9:>7.2f} GB/s  {ratio}  ({each})")
    share = medians["save, blocked"] / medians["save, waiting"]
    verdict = "within" if share <= TARGET else "over"
    print(f"a background save blocks for {share:.1%} of a waiting one: {verdict} {TARGET:.0%}")


if __name__ == "__main__":
    main()
