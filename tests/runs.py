"""Small runs for tests: a text, a configuration that trains in seconds, and what a run left."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.config import Config
from jaxformer.data import loader
from jaxformer.memory import MEMORY_FIELDS
from jaxformer.run import load
from jaxformer.train.metrics import TIMING_FIELDS, read_rows
from jaxformer.train.run import train

REPOSITORY = Path(__file__).parents[1]

MODEL = {
    "d_model": 16,
    "num_layers": 2,
    "mixer": {"kind": "attention", "num_heads": 2},
    "ffn": {"kind": "swiglu", "d_hidden": 24},
}


def write_text(folder: Path) -> str:
    """A text of about 30 kB in words that repeat, as a source."""
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefgh"), 4)) for _ in range(40)]
    path = folder / "text.txt"
    path.write_text(" ".join(random.choice(words, 6000)))
    return f"text:{path}"


def make_config(folder: Path, **sections: dict[str, Any]) -> Config:
    """A run of 12 steps in `folder`/run; `sections` replace or add keys, a section each."""
    data: dict[str, Any] = {
        "model": MODEL,
        "data": {
            "source": write_text(folder),
            "sequence_length": 16,
            "cache_dir": str(folder / "cache"),
        },
        "train": {
            "steps": 12,
            "batch_size": 4,
            "log_every": 2,
            "unroll_layers": False,
            "ema_decay": 0.9,
            "z_loss": 1e-4,
        },
        "optimizer": {"kind": "adamw", "schedule": {"warmup_steps": 3}},
        # A sample at the end would compile as much again as the training.
        "eval": {"every": 4, "batches": 2, "sample_tokens": 0},
        "checkpoint": {"every": 4},
        "run": {"dir": str(folder / "run")},
    }
    for name, keys in sections.items():
        data[name] = {**data.get(name, {}), **keys}
    return Config.model_validate(data)


def write_config(config: Config, path: Path) -> Path:
    path.write_text(config.model_dump_json())  # JSON is YAML
    return path


def start_training(
    config: Path,
    *overrides: str,
    environment: Mapping[str, str] | None = None,
    script: str = "train.py",
) -> subprocess.Popen[str]:
    """`python train.py CONFIG ...` as its own process."""
    return subprocess.Popen(
        [sys.executable, script, str(config), *overrides],
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 120.0) -> tuple[int, str]:
    """Exit code and output."""
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def results(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what depends on the clock or the device."""
    varying = {*TIMING_FIELDS, *MEMORY_FIELDS}
    return [
        {key: value for key, value in row.items() if key not in varying}
        for row in read_rows(run / "metrics.jsonl")
    ]


def saved_arrays(run: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, whole, by its path in the folder."""
    arrays, reader = {}, ocp.StandardCheckpointer()
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for item in ("params", "opt_state", "ema"):
        folder = run / "checkpoints" / str(step) / item
        if folder.is_dir():
            target = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
                reader.metadata(folder.resolve()).item_metadata.tree,
            )
            tree = reader.restore(folder.resolve(), target)
            for path, leaf in jax.tree.flatten_with_path(tree)[0]:
                arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays


def assert_same_arrays(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for path, array in one.items():
        assert array.dtype == other[path].dtype
        assert array.tobytes() == other[path].tobytes(), path


def losses(run: str) -> list[float]:
    """The training losses of a run directory, in order."""
    rows = read_rows(RunDirectory(run).metrics)
    return [row["loss"] for row in rows if "loss" in row]


def assert_a_stopped_run_is_the_whole(
    whole: Config, stopped: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of eight steps, saved at the fourth and interrupted while the seventh batch is made,
    goes on to the weights and losses of the same run that was not."""
    give, given = loader.BatchesInHand.__next__, []

    def stop(self: loader.BatchesInHand) -> Any:
        given.append(1)
        if len(given) == 7:
            raise KeyboardInterrupt
        return give(self)

    with monkeypatch.context() as patch:
        patch.setattr(loader.BatchesInHand, "__next__", stop)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    assert RunDirectory(stopped.run.dir).newest_step() == 4
    assert train(stopped) == 0
    one, other = (load(each.run.dir) for each in (whole, stopped))
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert losses(whole.run.dir) == losses(stopped.run.dir)
    assert len(losses(whole.run.dir)) == 8
