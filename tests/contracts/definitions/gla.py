"""Gated linear attention, arXiv:2312.06635."""

import math

import jax
import jax.numpy as jnp
from contracts.definition import Case, gated_output, heads_of, sigmoid

from jaxformer.model.mixers.gla import GLAConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def gla(params: dict, x: jax.Array, config: GLAConfig, scheme: PositionsUnion):
    q, k, v = (heads_of(x, params[name]["kernel"]) for name in ("query", "key", "value"))
    gate = heads_of(x @ params["gate_in"]["kernel"], params["gate_out"]["kernel"])
    alpha = sigmoid(gate + params["gate_out"]["bias"]) ** (1 / config.gate_temperature)
    memory, rows = jnp.zeros((config.num_heads, q.shape[-1], v.shape[-1])), []
    for t in range(len(x)):
        memory = alpha[t, :, :, None] * memory + k[t, :, :, None] * v[t, :, None, :]
        rows.append(jnp.einsum("hkv,hk->hv", memory, q[t]) / math.sqrt(q.shape[-1]))
    return gated_output(params["out"], jnp.stack(rows), x)


CASES = {
    "gla": Case(GLAConfig(num_heads=2, gate_rank=3, gate_temperature=4.0), NoPositionsConfig(), gla)
}
