"""Trains a small model on several meshes of eight simulated devices; prints what it saw as JSON."""

import json
import sys

import jax
import numpy as np

from jaxformer.config import Config
from jaxformer.data.batch import Batch
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import batch_sharding, path_name, put_batch
from jaxformer.train.program import make_program

MODEL = {
    "d_model": 32,
    "num_layers": 1,
    "mixer": {"kind": "attention", "num_heads": 4},
    "ffn": {"kind": "swiglu", "d_hidden": 48},
}
MESHES = {
    "one": {"data": 1},
    "fsdp": {"data": 1, "fsdp": 8},
    "both": {"data": 2, "fsdp": 4},
}


def make_batch(step: int) -> Batch:
    random = np.random.default_rng(step)
    tokens = random.integers(0, 32, (16, 17)).astype(np.int32)
    ones = np.ones((16, 16), np.int32)
    mask = np.arange(16) < random.integers(1, 17, (16, 1))
    return Batch(tokens[:, :-1], tokens[:, 1:], np.cumsum(ones, 1) - 1, ones, mask)


def train(name: str) -> dict:
    axes = MESHES[name]
    config = Config.model_validate(
        {
            "model": MODEL,
            "data": {"sequence_length": 16},
            "train": {"steps": 5, "batch_size": 16, "accumulation": 2, "unroll_layers": False},
            "mesh": axes,
        }
    )
    count = int(np.prod(list(axes.values())))
    mesh = make_mesh(config.mesh.model_dump(), jax.devices()[:count])
    program = make_program(config, mesh, vocab_size=32)
    state = program.initial_state()
    initial = [np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves(state.params)]
    local = {
        path_name(path): leaf.addressable_shards[0].data.shape
        for path, leaf in jax.tree.flatten_with_path((state.params, state.opt_state))[0]
    }
    compiled = program.compile(None)
    losses = []
    for step in range(5):
        batch = put_batch(make_batch(step), batch_sharding(mesh))
        state, metrics = compiled.train_step(state, batch)
        losses.append([float(metrics[key]) for key in ("loss", "grad_norm", "tokens")])
    return {"initial": initial, "local": local, "losses": losses}


if __name__ == "__main__":
    json.dump({name: train(name) for name in MESHES}, sys.stdout)
