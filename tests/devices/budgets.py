"""Compiles training steps for eight devices; prints the bytes of their weights, of each kind of
collective, those between stages and over `tensor` apart, and their FLOPs as JSON."""

import json
import sys
from collections import Counter

import jax
import numpy as np

from jaxformer.config import Config
from jaxformer.ops import cross_entropy
from jaxformer.parallel.mesh import AXES, make_mesh
from jaxformer.parallel.rules import path_name
from jaxformer.plan.cost import read_cost
from jaxformer.train.program import make_program

# The embedding is larger than what is looked up in it.
BATCH, LENGTH, VOCAB = 16, 128, 600
MODEL = {
    "d_model": 16,
    "num_layers": 3,
    "mixer": {"kind": "attention", "num_heads": 2},
    "ffn": {"kind": "swiglu", "d_hidden": 24},
    "tie_embeddings": False,
}


def collectives(mesh: dict, remat: str = "none", **model) -> dict:
    config = Config.model_validate(
        {
            "model": MODEL | model,
            "data": {"sequence_length": LENGTH},
            "train": {"batch_size": BATCH, "unroll_layers": False, "remat": remat},
            "mesh": mesh,
        }
    )
    devices = make_mesh(config.mesh.sizes)
    program = make_program(config, devices, VOCAB)
    text = program.compile(None).train_step.as_text()
    sizes = {
        path_name(path): leaf.size * leaf.dtype.itemsize
        for path, leaf in jax.tree.flatten_with_path(program.abstract.params)[0]
    }
    cost = read_cost(text)
    bytes_of, across = Counter(), {"stage": Counter(), "tensor": Counter()}
    places = np.indices(devices.devices.shape).reshape(len(AXES), -1)
    for collective, times in cost.collectives.items():
        bytes_of[collective.kind] += collective.bytes * times
        for axis, bytes_across in across.items():
            if len(set(places[AXES.index(axis), list(collective.group)])) > 1:
                bytes_across[collective.kind] += collective.bytes * times
    tokens = BATCH * LENGTH
    return {
        "weights": sizes,
        "token_ids": 4 * tokens,
        "activations": 4 * tokens * MODEL["d_model"] // 8,  # of one device
        "bytes": bytes_of,
        "across": across,
        "flops": cost.flops,
    }


if __name__ == "__main__":
    cross_entropy.CHUNK_TOKENS, cross_entropy.CHUNK_BYTES = 4, 1  # many chunks
    seen = {
        "data": collectives({"data": 8}),
        "fsdp": collectives({"fsdp": 8}),
        "fsdp, remat": collectives({"fsdp": 8}, remat="full"),
        "fsdp, tied": collectives({"fsdp": 8}, tie_embeddings=True),
        "tensor": collectives({"fsdp": 4, "tensor": 2}),
        "tensor, padded": collectives({"fsdp": 4, "tensor": 2}, vocab_size=VOCAB + 1),
        "context": collectives({"fsdp": 2, "context": 4}),
        "stages": collectives({"data": 1, "stage": 4, "fsdp": 2}, num_layers=4),
    }
    json.dump(seen, sys.stdout)
