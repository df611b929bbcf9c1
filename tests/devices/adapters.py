"""Trains adapters on meshes of four simulated devices; prints what it saw as JSON."""

import json
import sys

import jax
import numpy as np

from jaxformer.config import Config
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import path_name
from jaxformer.train.program import make_program
from tests.devices.eight_devices import MIXERS, numbers, step

CONTEXT = {"data": 1, "fsdp": 2, "context": 2}
CASES = {
    "one": ("hybrid", {"data": 1}, 0.25),
    "tensor": ("hybrid", {"data": 1, "fsdp": 2, "tensor": 2}, 0.25),
    "without dropout": ("attention", {"data": 1}, 0.0),
    "context, without dropout": ("attention", CONTEXT, 0.0),
    "context": ("attention", CONTEXT, 0.25),
}


def train(mixers: str, axes: dict, dropout: float) -> dict:
    layers = len(MIXERS[mixers].get("pattern", [{}]))
    model = {"d_model": 32, "num_layers": layers, "ffn": {"kind": "swiglu", "d_hidden": 48}}
    config = Config.model_validate(
        {
            "model": model | MIXERS[mixers],
            "data": {"sequence_length": 16},
            "train": {"batch_size": 16, "accumulation": 2, "unroll_layers": False},
            "mesh": axes,
            "init": {"from": "runs/base"},
            "lora": {"rank": 4, "dropout": dropout, "targets": ["*/mixer/*", "*/ffn/*"]},
        }
    )
    count = int(np.prod(list(axes.values())))
    program = make_program(config, make_mesh(config.mesh.sizes, devices=jax.devices()[:count]), 32)
    state, compiled = program.initial_state(), program.compile(None)
    local = {
        path_name(path): leaf.addressable_shards[0].data.shape
        for path, leaf in jax.tree.flatten_with_path(state.params)[0]
    }
    losses = []
    for number in range(3):
        state, metrics = step(program, compiled, state, number)
        losses.append(numbers(metrics))
    return {"losses": losses, "local": local}


if __name__ == "__main__":
    json.dump({name: train(*case) for name, case in CASES.items()}, sys.stdout)
