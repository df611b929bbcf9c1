"""Losses, gradients and evaluations of pairs on eight simulated devices against one device; prints
the largest of the relative differences as JSON, by mesh, and whether a device holds all rows."""

import json
import math
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from objectives.contrastive import batch_of, model_of

from jaxformer.objectives import ContrastiveConfig
from jaxformer.ops.contrastive import LOSSES, Sides, Similarity
from jaxformer.parallel.among_rows import among_rows
from jaxformer.parallel.mesh import DATA_AXES, make_mesh
from jaxformer.parallel.rules import batch_sharding, parameter_shardings, put_batch, use_mesh

MESHES = {
    "data": {"data": 8},
    "data, fsdp and tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "data and context": {"data": 4, "context": 2},
}
OBJECTIVES = [ContrastiveConfig(form="sigmoid"), ContrastiveConfig(form="softmax")]
BATCH = batch_of(16, missing=3)


def measure(sizes: dict[str, int]) -> list[np.ndarray]:
    model, params = model_of()
    mesh = make_mesh(sizes, devices=jax.devices()[: math.prod(sizes.values())])
    boxed = jax.eval_shape(model.init, jax.random.key(0), model.config.example)["params"]
    shardings = parameter_shardings(mesh, boxed)

    def total(params: dict, batch: tuple) -> tuple[jax.Array, list[jax.Array]]:
        options = {"z_loss": 0.0, "rngs": {}, "reference": None}
        each = [one.loss(model, params, batch, **options).total for one in OBJECTIVES]
        return each[0] + 2 * each[1], each

    @jax.jit
    def both(params: dict, batch: tuple) -> tuple:
        found = jax.value_and_grad(total, has_aux=True)(params, batch)
        return found, OBJECTIVES[0].evaluate(model, params, batch)

    with use_mesh(mesh):
        batch = put_batch(BATCH, batch_sharding(mesh))
        return jax.tree.leaves(jax.device_get(both(jax.device_put(params, shardings), batch)))


def held_whole(form: str) -> bool:
    """Whether a device holds the similarities of all rows: 24 of width 3."""
    mesh = make_mesh({"data": 8}, devices=jax.devices())
    sides, pairs = Sides(*np.ones((2, 24, 3))), np.arange(24, dtype=np.int32)
    gradient = jax.jit(jax.grad(among_rows(LOSSES[form]), (0, 1)))
    with use_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec(DATA_AXES))
        placed = jax.device_put((sides, pairs), rows)
        text = gradient.lower(Similarity(1.0, 0.0), *placed).compile().as_text()
    assert "collective-permute" in text
    return "24,24]" in text or "24,3]" in text


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Against 1e-3 at least: the bias of a probe's keys has a gradient of 0."""
    return float(np.max(np.abs(ours - theirs)) / np.maximum(np.max(np.abs(theirs)), 1e-3))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    alone = measure({"data": 1})
    found = {}
    for name, sizes in MESHES.items():
        pairs = zip(measure(sizes), alone, strict=True)
        found[name] = max(relative(*pair) for pair in pairs)
    found |= {f"{form}, whole": float(held_whole(form)) for form in LOSSES}
    json.dump(found, sys.stdout)
