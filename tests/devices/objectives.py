"""Losses, gradients and evaluations of objectives on four simulated devices, each row cut over two
or all of them, or layers in two stages, against one device; prints the largest of the relative
differences as JSON, by objective and mesh, and whether one short prompt is continued alike."""

import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
from objectives.small import documents, model_of, rows_of

from jaxformer.generate.decoders import decoder_for
from jaxformer.generate.sampling import Sampling
from jaxformer.objectives import (
    AnyOrderConfig,
    BlockDiffusionConfig,
    MaskedDiffusionConfig,
    ObjectiveConfig,
    PrefixConfig,
)
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import batch_sharding, put_batch, replicated, use_mesh

MESHES = {
    "two pieces": {"data": 2, "context": 2},
    "four pieces": {"data": 1, "context": 4},
    "stages": {"stage": 2, "data": 2},
}
OBJECTIVES: list[ObjectiveConfig] = [
    MaskedDiffusionConfig(eval_draws=2),
    BlockDiffusionConfig(block=3, eval_draws=2),
    AnyOrderConfig(eval_draws=2),
    PrefixConfig(),
]
BATCH = rows_of(
    16,
    documents(3, 8, 4),
    documents(16, seed=1),
    documents(9, 7, seed=2),
    documents(5, seed=3),
)


def measure(objective: ObjectiveConfig, sizes: dict[str, int]) -> list[jax.Array]:
    model, params = model_of()
    if "stage" in sizes:
        model = model.clone(micro_batches=2)
    mesh = make_mesh(sizes, devices=jax.devices()[: 4 if len(sizes) > 1 else 1])

    def total(params: dict, batch: tuple) -> jax.Array:
        rngs = {"noise": jax.random.key(5)}
        loss = objective.loss(model, params, batch, z_loss=1e-3, rngs=rngs, reference=None)
        return loss.total

    @jax.jit
    def both(params: dict, batch: tuple) -> tuple:
        sums = partial(objective.evaluate, model)(params, batch)
        return jax.value_and_grad(total)(params, batch), sums

    with use_mesh(mesh):
        batch = put_batch(BATCH, batch_sharding(mesh))
        return jax.tree.leaves(
            jax.device_get(both(jax.device_put(params, replicated(mesh)), batch))
        )


def continuation(objective: ObjectiveConfig, sizes: dict[str, int]) -> list[int]:
    """Of one prompt, which the mesh does not divide, and which ends in its first block."""
    model, params = model_of()
    mesh = make_mesh(sizes, devices=jax.devices()[: 4 if len(sizes) > 1 else 1])
    with use_mesh(mesh):
        placed = jax.device_put(params, replicated(mesh))
        decoder = decoder_for(objective, model, placed, eos_id=-1, mesh=mesh)
        pieces = decoder.decode([[1]], max_new_tokens=4, sampling=Sampling(0.0))
        return [int(token) for piece in pieces for token in piece[0]]


def relative(ours: jax.Array, theirs: jax.Array) -> float:
    return float(jnp.max(jnp.abs(ours - theirs)) / jnp.maximum(jnp.max(jnp.abs(theirs)), 1e-30))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    found = {}
    for objective in OBJECTIVES:
        if objective.kind not in sys.argv[1:]:
            continue
        alone = measure(objective, {"data": 1})
        for name, sizes in MESHES.items():
            pairs = zip(measure(objective, sizes), alone, strict=True)
            found[f"{objective.kind}, {name}"] = max(relative(*pair) for pair in pairs)
        on_mesh, alone = (
            continuation(objective, sizes) for sizes in (MESHES["two pieces"], {"data": 1})
        )
        found[f"{objective.kind}, continued"] = float(on_mesh != alone)
    json.dump(found, sys.stdout)
