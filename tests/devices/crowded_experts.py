"""Experts that most tokens choose, on eight simulated devices, in float64: how far outputs and
gradients are from those of one device, as JSON."""

import json
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxformer.ops.routing import grouped_products
from jaxformer.parallel import rounds
from jaxformer.parallel.expert import Rows, Tokens, visit_experts
from jaxformer.parallel.mesh import make_mesh

TOKENS, WIDTH, EXPERTS = 64, 6, 16
MESHES = {
    "exchange": ({"expert": 8}, 2),
    "exchange of groups": ({"fsdp": 2, "expert": 4}, 2),
    "ring": ({"fsdp": 2, "expert": 4}, 4),
}


def poisoned(swap: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Infinite where nothing arrives on the way there: a TPU leaves what was in its memory."""

    def swapped(rows: jax.Array, pieces: rounds.Pieces, length: int) -> jax.Array:
        arrived = swap(rows, pieces, length)
        if length < len(rows):  # rounds have room for more than a device sends
            return arrived
        received = jnp.sum(pieces.size[:, jax.lax.axis_index(rounds.AXIS)])
        nothing = jnp.arange(length).reshape(-1, *[1] * (rows.ndim - 1)) >= received
        return jnp.where(nothing, jnp.inf, arrived)

    return swapped


def of_rows(weights: dict, rows: Rows) -> jax.Array:
    (hidden,) = grouped_products(rows.x, [weights["kernel"]], rows.counts)
    return jnp.tanh(hidden) * rows.gates[:, None]


def loss(weights: dict, x: jax.Array, gates: jax.Array, experts: jax.Array) -> tuple:
    axes = {"kernel": PartitionSpec("experts", "d_model", None)}
    y = visit_experts(of_rows, weights, axes, Tokens(x, experts, gates), EXPERTS)
    return jnp.sum(jnp.sin(y)), y


def crowded(chosen: int) -> tuple:
    """Two tokens of three choose the first experts."""
    random = np.random.default_rng(0)
    scores = random.normal(size=(TOKENS, EXPERTS))
    scores[random.random(TOKENS) < 0.67, :chosen] += 9
    experts = np.argsort(-scores, axis=1)[:, :chosen].astype(np.int32)
    experts[:5] = EXPERTS  # nobody's
    return (
        {"kernel": random.normal(size=(EXPERTS, WIDTH, WIDTH))},
        random.normal(size=(TOKENS, WIDTH)),
        random.random((TOKENS, chosen)),
        experts,
    )


def difference(mesh: dict, chosen: int) -> dict:
    given = jax.tree.map(jnp.asarray, crowded(chosen))
    of_loss = partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    alone = jax.jit(of_loss(loss))(*given)
    with jax.set_mesh(make_mesh({"data": 1} | mesh)):
        shared = jax.jit(of_loss(loss))(*given)
    apart = jax.tree.map(lambda a, b: float(np.max(np.abs(np.asarray(a) - b))), shared, alone)
    own = EXPERTS // mesh["expert"]
    rows = np.sum(given[-1] < own) // mesh.get("fsdp", 1)  # of the first experts' device, about
    room = rounds.room_of_round(TOKENS // 8 * chosen, TOKENS * chosen)
    return {"apart": max(jax.tree.leaves(apart)), "rounds": -(-int(rows) // room)}


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    rounds.UNIT = 8  # so that few rows are several rounds
    rounds.padded_swap = poisoned(rounds.padded_swap)
    print(json.dumps({name: difference(*case) for name, case in MESHES.items()}))
