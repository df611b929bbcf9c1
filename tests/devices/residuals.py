"""One training step of models with several residual streams, or whose layers know their number, on
one of eight simulated devices and on all; prints the metrics as JSON."""

import json
import tempfile
from pathlib import Path

import jax

from jaxformer.config import Config
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import batch_sharding, put_batch
from jaxformer.train.program import make_program
from tests.devices.depths import make_batch

STRUCTURES = {
    "streams": {"residual": {"kind": "hyper_connections", "streams": 2}},
    "manifold": {"residual": {"kind": "mhc", "streams": 2}},
    "attention": {"residual": {"kind": "attention_residuals", "block_layers": 2}},
    "values": {"residual": {"kind": "value_residual"}, "norm": {"placement": "lns"}},
}
MESHES = {"one": {"data": 1}, "eight": {"data": 1, "stage": 2, "fsdp": 2, "tensor": 2}}


def metrics_of(structure: dict, mesh_section: dict, folder: Path) -> dict[str, float]:
    config = Config.model_validate(
        {
            "model": {
                "d_model": 16,
                "num_layers": 4,
                "mixer": {"kind": "attention", "num_heads": 2},
                "ffn": {"kind": "swiglu", "d_hidden": 16},
                "vocab_size": 32,
                "init": {"std": 0.3},
                **structure,
            },
            "data": {"source": "builtin:python", "sequence_length": 16},
            "train": {"steps": 2, "batch_size": 4, "unroll_layers": False, "remat": "full"},
            "mesh": mesh_section,
            "run": {"dir": str(folder)},
        }
    )
    used = jax.devices()[:1] if mesh_section == MESHES["one"] else jax.devices()
    mesh = make_mesh(config.mesh.sizes, devices=used)
    program = make_program(config, mesh, 32)
    step = program.compile_train_step()
    state, batch = program.initial_state(), put_batch(make_batch(), batch_sharding(mesh))
    state, first = step(state, batch)
    _, second = step(state, batch)
    found = {f"first {name}": value for name, value in first.items()}
    found |= {f"second {name}": value for name, value in second.items()}
    return {name: float(value) for name, value in found.items()}


if __name__ == "__main__":
    found = {
        name: {
            mesh: metrics_of(structure, section, Path(tempfile.mkdtemp()))
            for mesh, section in MESHES.items()
        }
        for name, structure in STRUCTURES.items()
    }
    print(json.dumps(found))
