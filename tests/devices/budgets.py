"""Compiles training steps for eight devices; prints the bytes of their weights and of each kind of
collective as JSON."""

import json
import sys
from collections import Counter

import jax

from jaxformer.config import Config
from jaxformer.ops import cross_entropy
from jaxformer.parallel.cost import read_cost
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import path_name
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
    program = make_program(config, make_mesh(config.mesh.sizes), VOCAB)
    text = program.compile(None).train_step.as_text()
    sizes = {
        path_name(path): leaf.size * leaf.dtype.itemsize
        for path, leaf in jax.tree.flatten_with_path(program.abstract.params)[0]
    }
    bytes_of = Counter()
    for collective, times in read_cost(text).collectives.items():
        bytes_of[collective.kind] += collective.bytes * times
    tokens = BATCH * LENGTH
    return {
        "weights": sizes,
        "token_ids": 4 * tokens,
        "activations": 4 * tokens * MODEL["d_model"] // 8,  # of one device
        "bytes": bytes_of,
    }


if __name__ == "__main__":
    cross_entropy.CHUNK_TOKENS, cross_entropy.CHUNK_BYTES = 4, 1  # many chunks
    seen = {
        "data": collectives({"data": 8}),
        "fsdp": collectives({"fsdp": 8}),
        "fsdp, remat": collectives({"fsdp": 8}, remat="full"),
        "fsdp, tied": collectives({"fsdp": 8}, tie_embeddings=True),
        "context": collectives({"fsdp": 2, "context": 4}),
    }
    json.dump(seen, sys.stdout)
