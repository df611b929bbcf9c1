"""One training step of models whose depth is not fixed, on one of eight simulated devices and on
all; prints the metrics as JSON."""

import json
import tempfile
from pathlib import Path

import jax
import numpy as np

from jaxformer.batch import Batch
from jaxformer.config import Config
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import batch_sharding, put_batch
from jaxformer.train.program import make_program

ACT = {"kind": "act", "epsilon": 0.3}
PONDER = {"kind": "ponder"}
DEPTHS = {
    "random": {"kind": "loop", "turns": {"mean": 2.0, "most": 3}, "inject": "concat"},
    "act": {"kind": "loop", "turns": 2, "halting": ACT, "before": 1},
    "ponder": {"kind": "loop", "turns": 2, "halting": PONDER},
    "exits": {"kind": "exits", "layer_dropout": 0.5, "every": 2},
}
MESHES = {"one": {"data": 1}, "eight": {"data": 1, "fsdp": 2, "context": 4}}


def make_batch() -> Batch:
    random = np.random.default_rng(0)
    tokens = random.integers(0, 32, (4, 17)).astype(np.int32)
    ones = np.ones((4, 16), np.int32)
    segments = np.where(np.arange(16) < random.integers(8, 17, (4, 1)), ones, 0).astype(np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:], np.cumsum(ones, 1) - 1, segments, segments > 0)


def metrics_of(depth: dict, mesh_section: dict, folder: Path) -> dict[str, float]:
    config = Config.model_validate(
        {
            "model": {
                "d_model": 16,
                "num_layers": 2,
                "mixer": {"kind": "attention", "num_heads": 2},
                "ffn": {"kind": "swiglu", "d_hidden": 16},
                "vocab_size": 32,
                "depth": depth,
            },
            "data": {"source": "builtin:python", "sequence_length": 16},
            "train": {"steps": 2, "batch_size": 4, "unroll_layers": False},
            "mesh": mesh_section,
            "run": {"dir": str(folder)},
        }
    )
    used = jax.devices()[:1] if mesh_section == MESHES["one"] else jax.devices()
    mesh = make_mesh(config.mesh.sizes, devices=used)
    program = make_program(config, mesh, 32)
    step = program.compile_train_step()
    _, metrics = step(program.initial_state(), put_batch(make_batch(), batch_sharding(mesh)))
    return {name: float(value) for name, value in metrics.items()}


if __name__ == "__main__":
    found = {
        name: {
            mesh: metrics_of(depth, section, Path(tempfile.mkdtemp()))
            for mesh, section in MESHES.items()
        }
        for name, depth in DEPTHS.items()
    }
    print(json.dumps(found))
