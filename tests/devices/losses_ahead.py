"""Losses of several tokens ahead on a mesh of four devices against one: prints the largest of the
relative differences of the losses and gradients, for every mesh, as JSON."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from jaxformer.batch import Batch
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import build_model
from jaxformer.objectives.multi_token import MultiTokenConfig
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import batch_sharding, parameter_shardings, put_batch, use_mesh

LENGTH, VOCAB = 16, 8
MODEL = {
    "d_model": 8,
    "num_layers": 2,
    "vocab_size": VOCAB,
    "mixer": {"kind": "attention", "num_heads": 2},
    "ffn": {"kind": "swiglu", "d_hidden": 8},
    "further": {"kind": "modules", "count": 2},
}
MESHES = {
    "context": {"data": 1, "context": 4},
    "stages": {"stage": 2, "fsdp": 2},
    "tensor": {"fsdp": 2, "tensor": 2, "data": 1},
}


def make_batch() -> Batch:
    """Documents that end within a device's piece of a row, at its end, and go on over two."""
    tokens = np.random.default_rng(0).integers(0, VOCAB, (4, LENGTH + 1)).astype(np.int32)
    lengths = ([3, 9, 4], [4, 12], [1, 14], [16])
    positions, segments = np.zeros((2, 4, LENGTH), np.int32)
    mask = np.zeros((4, LENGTH), bool)
    for row, pieces in enumerate(lengths):
        start = 0
        for number, length in enumerate(pieces, start=1):
            own = slice(start, start + length)
            positions[row, own], segments[row, own] = np.arange(length), number
            mask[row, start : start + length - 1] = True
            start += length
    return Batch(tokens[:, :-1], tokens[:, 1:], positions, segments, mask)


def measure(mesh_axes: dict[str, int], devices: int) -> list[np.ndarray]:
    mesh = make_mesh(mesh_axes, devices=jax.devices()[:devices])
    model = build_model(ModelConfig.model_validate(MODEL), dtype=jnp.float64)
    if mesh.shape["stage"] > 1:
        model = model.clone(micro_batches=2)

    def total(params: dict, batch: Batch) -> tuple:
        loss = MultiTokenConfig().loss(model, params, batch, z_loss=0.0, rngs={}, reference=None)
        return loss.total, loss.means

    tokens = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    places = parameter_shardings(mesh, shapes)
    start = meta.unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
    params = jax.device_put(jax.tree.map(lambda x: x.astype(jnp.float64), start), places)
    with use_mesh(mesh):
        batch = put_batch(make_batch(), batch_sharding(mesh))
        found = jax.jit(jax.value_and_grad(total, has_aux=True))(params, batch)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(found)]


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    alone = measure({"data": 1}, 1)
    json.dump(
        {name: difference(measure(axes, 4), alone) for name, axes in MESHES.items()}, sys.stdout
    )
