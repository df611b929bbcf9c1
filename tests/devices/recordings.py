"""Losses, gradients and evaluations of recordings on four simulated devices against one device;
prints the largest of the relative differences as JSON, by mesh."""

import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
from model.test_frames import model_of
from objectives.test_ctc import batch_of

from jaxformer.objectives import CTCConfig
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import batch_sharding, parameter_shardings, put_batch, use_mesh

MESHES = {
    "data": {"data": 4},
    "fsdp and tensor": {"fsdp": 2, "tensor": 2},
    "stages": {"stage": 2, "data": 2},
}


def measure(sizes: dict[str, int]) -> list[np.ndarray]:
    model, params = model_of({"augment": {"widest": 2}}, num_layers=2)
    model = model.clone(micro_batches=2)
    mesh = make_mesh(sizes, devices=jax.devices()[: math.prod(sizes.values())])
    example = jnp.zeros(model.config.inputs.example.shape)
    boxed = jax.eval_shape(model.init, jax.random.key(0), example)["params"]
    shardings = parameter_shardings(mesh, boxed)
    objective = CTCConfig()

    def total(params: dict, batch: tuple) -> jax.Array:
        rngs = {"noise": jax.random.key(5)}
        loss = objective.loss(model, params, batch, z_loss=1e-3, rngs=rngs, reference=None)
        return loss.total

    @jax.jit
    def both(params: dict, batch: tuple) -> tuple:
        return jax.value_and_grad(total)(params, batch), objective.evaluate(model, params, batch)

    with use_mesh(mesh):
        batch = put_batch(batch_of(), batch_sharding(mesh))
        return jax.tree.leaves(jax.device_get(both(jax.device_put(params, shardings), batch)))


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.max(np.abs(ours - theirs)) / np.maximum(np.max(np.abs(theirs)), 1e-30))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    alone = measure({"data": 1})
    found = {}
    for name, sizes in MESHES.items():
        pairs = zip(measure(sizes), alone, strict=True)
        found[name] = max(relative(*pair) for pair in pairs)
    json.dump(found, sys.stdout)
