"""Trains a small model with the mixers named on several meshes of eight simulated devices, those of
the set named; prints what it saw as JSON. Each mesh goes on from checkpoints of one device, of the
mesh before it, and of its own."""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from jaxformer.batch import Batch, Pair, Source
from jaxformer.checkpoint.manager import Checkpoints
from jaxformer.config import Config
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import batch_sharding, path_name, put_batch
from jaxformer.train.program import Compiled, Program, make_program, progress, restored, trees
from jaxformer.train.step import TrainState

MAMBA2 = {"kind": "mamba2", "expansion": 1.0, "head_dim": 8, "state_size": 8}
GATED_DELTA = {"kind": "gated_delta", "num_heads": 4, "head_dim": 8, "value_expansion": 1.0}
WINDOW = {"kind": "attention", "num_heads": 4, "window": 6}
ATTENTION = {
    "mixer": {"kind": "attention", "num_heads": 4, "sink_logit": True},
    "vocab_size": 32,
}
RELATIVE = {"kind": "relative", "num_buckets": 8, "max_distance": 12}
# Some with a vocabulary of which `tensor` divides only what is padded.
MIXERS = {
    "attention": ATTENTION | {"positions": RELATIVE},
    "gated_delta": {"mixer": GATED_DELTA, "vocab_size": 33, "tie_embeddings": False},
    "hybrid": {"mixer": MAMBA2, "pattern": [{}, {"mixer": WINDOW}], "vocab_size": 35},
}
# Its rows are not cut over `context`.
OUTER = [{"mixer": {"kind": "min_gru"}, "ffn": {"kind": "gelu", "d_hidden": 32}}]
MIXERS["chunks"] = ATTENTION | {
    "inputs": {"kind": "chunks", "encoder": OUTER, "decoder": OUTER, "ratio": 2.0, "share": 0.625}
}
PAIRS = {"kind": "pairs", "source": "jsonl:none", "pairs": {"source": "a", "target": "b"}}
MOE = {"kind": "moe", "num_experts": 8, "experts_per_token": 2, "d_hidden": 16, "shared": {}}
BALANCE = {"auxiliary": 0.1, "z_loss": 0.01, "bias_rate": 0.01}
MIXERS["experts"] = ATTENTION | {"ffn": MOE | {"balance": BALANCE, "bias": True}}
BY_PICK = {"routing": "expert_choice", "predictor_weight": 0.1, "balance": {}}
MIXERS["routings"] = ATTENTION | {
    "pattern": [{"ffn": MOE | BY_PICK}, {"ffn": MOE | {"routing": "hash"}}]
}
ENCODER = {"length": 16, "d_model": 24, "num_layers": 2, "mixer": MIXERS["attention"]["mixer"]}
MIXERS["translator"] = MIXERS["attention"] | {
    "pattern": [{}, {"mixer": {"kind": "cross_attention", "num_heads": 4}}],
    "encoder": ENCODER | {"ffn": {"kind": "swiglu", "d_hidden": 32}},
}
MESHES = {
    "rows": {
        "one": {"data": 1},
        "data": {"data": 8},
        "fsdp": {"data": 1, "fsdp": 8},
        "three": {"data": 2, "fsdp": 2, "tensor": 2},
        "context": {"data": 1, "fsdp": 2, "context": 4},
        "all": {"data": 1, "fsdp": 2, "tensor": 2, "context": 2},
    },
    "stages": {
        "one": {"data": 1},
        "fsdp": {"stage": 2, "fsdp": 4},
        "data": {"stage": 4, "data": 2},
        "three": {"stage": 2, "data": 2, "tensor": 2},
        "context": {"stage": 2, "fsdp": 2, "context": 2},
    },
    "experts": {
        "one": {"data": 1},
        "fsdp": {"data": 1, "fsdp": 8},
        "ring": {"data": 2, "fsdp": 2, "expert": 2},
        "exchange": {"fsdp": 2, "expert": 4},
        "expert": {"expert": 8},
        "tensor": {"fsdp": 2, "expert": 2, "tensor": 2},
        "context": {"expert": 4, "context": 2},
        "stages": {"stage": 2, "expert": 4},
    },
    "routings": {
        "one": {"data": 1},
        "expert": {"fsdp": 2, "expert": 4},
        "context": {"expert": 4, "context": 2},
        "stages": {"stage": 2, "expert": 2, "context": 2},
    },
    "pairs": {
        "one": {"data": 1},
        "three": {"data": 2, "fsdp": 2, "tensor": 2},
        "context": {"data": 1, "fsdp": 2, "context": 4},
        "stages": {"stage": 2, "fsdp": 4},
    },
    "uncut": {
        "one": {"data": 1},
        "data": {"data": 8},
        "fsdp": {"data": 1, "fsdp": 8},
        "three": {"data": 2, "fsdp": 2, "tensor": 2},
        "stages": {"stage": 2, "fsdp": 4},
    },
}


def make_batch(step: int, of_pairs: bool) -> Batch:
    random = np.random.default_rng(step)
    tokens = random.integers(0, 32, (16, 17)).astype(np.int32)
    ones = np.ones((16, 16), np.int32)
    places = np.cumsum(ones, 1) - 1
    mask = np.arange(16) < random.integers(1, 17, (16, 1))
    batch = Batch(tokens[:, :-1], tokens[:, 1:], places, ones, mask)
    if not of_pairs:
        return batch
    # Two pairs in every row, whose sources and targets are cut at different places.
    second = places >= 5
    source = Source(random.permuted(batch.inputs, axis=1), places - 5 * second, ones + second)
    later = places >= 9
    positions, segment_ids = places - 9 * later, ones + later
    return Batch(Pair(batch.inputs, source), batch.targets, positions, segment_ids, mask)


@dataclass(frozen=True)
class Trained:
    program: Program
    compiled: Compiled
    state: TrainState
    seen: dict


def step(program: Program, compiled: Compiled, state: TrainState, number: int) -> tuple:
    of_pairs = program.config.model.encoder is not None
    batch = put_batch(make_batch(number, of_pairs), batch_sharding(program.mesh))
    return compiled.train_step(state, batch)


def numbers(metrics: dict) -> list[float]:
    names = ("loss", "grad_norm", "tokens", "z_loss", "layer_loss", "inputs/chunks")
    return [float(metrics[name]) for name in names if name in metrics]


def train(mixers: dict, axes: dict, repetitions: int, remat: str) -> Trained:
    layers = repetitions * len(mixers.get("pattern", [{}]))
    model = {"d_model": 32, "num_layers": layers, "ffn": {"kind": "swiglu", "d_hidden": 48}}
    config = Config.model_validate(
        {
            "model": model | mixers,
            "data": {"sequence_length": 16} | (PAIRS if "encoder" in mixers else {}),
            "train": {
                "steps": 6,
                "batch_size": 16,
                "accumulation": 2,
                "unroll_layers": False,
                "z_loss": 0.1,
                "layer_statistics": {},
                "remat": remat,
            },
            "mesh": {"data": 1} | axes,
        }
    )
    count = int(np.prod(list(axes.values())))
    mesh = make_mesh(config.mesh.sizes, devices=jax.devices()[:count])
    program = make_program(config, mesh, vocab_size=32 if mixers["vocab_size"] == 32 else 33)
    state = program.initial_state()
    seen = {
        "initial": [np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves(state.params)],
        "local": {
            path_name(path): leaf.addressable_shards[0].data.shape
            for path, leaf in jax.tree.flatten_with_path((state.params, state.opt_state))[0]
        },
        "losses": [],
    }
    compiled = program.compile(None)
    for number in range(5):
        state, metrics = step(program, compiled, state, number)
        seen["losses"].append(numbers(metrics))
        seen["frozen"] = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(state.frozen)]
        seen["layers"] = {name: np.asarray(x).tolist() for name, x in metrics["layers"].items()}
        if number == 0:  # a tenth of the gradient
            seen["gradients"] = {
                path_name(path): np.asarray(leaf).tolist()
                for path, leaf in jax.tree.flatten_with_path(state.opt_state)[0]
                if "/mu/" in path_name(path)
            }
    return Trained(program, compiled, state, seen)


def resume(trained: Trained, saved: Path) -> list[float]:
    """A sixth step, on this mesh, after the fifth of another."""
    with Checkpoints(saved, read_only=True) as checkpoints:
        arrays = checkpoints.restore(5, trees(trained.program.abstract))
        state = restored(trained.program, arrays, checkpoints.state(5))
    return numbers(step(trained.program, trained.compiled, state, 5)[1])


if __name__ == "__main__":
    mixers, meshes = sys.argv[1:]
    of_meshes = {"rows": (1, "none"), "stages": (4, "dots"), "uncut": (2, "dots")}
    of_meshes |= {"experts": (2, "full"), "routings": (2, "none"), "pairs": (2, "dots")}
    layers = of_meshes[meshes]
    on = {name: train(MIXERS[mixers], axes, *layers) for name, axes in MESHES[meshes].items()}
    with tempfile.TemporaryDirectory() as folder:
        for name, trained in on.items():
            with Checkpoints(Path(folder) / name) as checkpoints:
                checkpoints.save(5, trees(trained.state), progress(trained.state), {}, None)
        names = list(on)
        for name, before in zip(names, names[-1:] + names, strict=False):
            saved = dict.fromkeys((names[0], before, name))
            on[name].seen["resumed"] = {
                each: resume(on[name], Path(folder) / each) for each in saved
            }
    json.dump({name: trained.seen for name, trained in on.items()}, sys.stdout)
