"""Every mixer on a sequence cut over four devices against the whole one: prints the largest of the
relative differences of outputs and gradients as JSON."""

import json
import sys

import jax
import jax.numpy as jnp
from contracts.cases import CASES, D_MODEL, ENCODERS
from contracts.contract import setup
from jax.sharding import AxisType, PartitionSpec

from jaxformer.model.positions import RoPEConfig
from jaxformer.model.rows import RowInfo

LENGTH = 24  # six tokens a device
DYNAMIC = {"kind": "dynamic", "factor": 4.0, "original_max_length": 5}
DYNAMIC_ROPE = RoPEConfig.model_validate({"base": 100.0, "scaling": DYNAMIC})
WINDOW = ENCODERS["encoder_attention_window"].config.model_copy(update={"sinks": 0})
ALL = {
    **CASES,
    **ENCODERS,
    "attention_dynamic": CASES["attention"]._replace(scheme=DYNAMIC_ROPE),
    "encoder_window": ENCODERS["encoder_attention_window"]._replace(config=WINDOW),
}


def documents() -> RowInfo:
    """Documents that end inside a shard, at its end, and go on over two of them."""
    segment_ids = jnp.array([[1] * 2 + [2] * 10 + [3] + [4] * 11, [1] * 21 + [0] * 3], jnp.int32)
    starts = jnp.array([[0] * 2 + [2] * 10 + [12] + [13] * 11, [0] * 21 + [21] * 3])
    return RowInfo(jnp.arange(LENGTH) - starts, segment_ids)


def difference(name: str) -> float:
    mixer, params, x = setup(ALL[name], LENGTH)
    weights = jax.random.normal(jax.random.key(3), (2, LENGTH, D_MODEL))

    def whole(params: dict, x: jax.Array, info: RowInfo) -> jax.Array:
        return mixer.apply({"params": params}, x, info)[0]

    rows = PartitionSpec(None, "context")
    cut = jax.shard_map(
        whole,
        in_specs=(PartitionSpec(), rows, rows),
        out_specs=rows,
        axis_names={"context"},
        check_vma=False,
    )

    def measure(form):
        def total(params: dict, x: jax.Array) -> tuple:
            y = form(params, x, documents())
            return jnp.sum(y * weights), y

        return jax.jit(jax.grad(total, (0, 1), has_aux=True))(params, x)

    def relative(ours: jax.Array, theirs: jax.Array) -> float:
        return float(jnp.max(jnp.abs(ours - theirs)) / jnp.max(jnp.abs(theirs)))

    pairs = zip(jax.tree.leaves(measure(cut)), jax.tree.leaves(measure(whole)), strict=True)
    return max(relative(*pair) for pair in pairs)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    mesh = jax.make_mesh((1, 4), ("data", "context"), (AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        json.dump({name: difference(name) for name in sys.argv[1:]}, sys.stdout)
