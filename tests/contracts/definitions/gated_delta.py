"""Gated DeltaNet, arXiv:2412.06464."""

import math

import jax
import jax.numpy as jnp
from contracts.definition import (
    Case,
    convolve,
    gated_output,
    heads_of,
    sigmoid,
    silu,
    softplus,
    unit,
)

from jaxformer.model.mixers.gated_delta import GatedDeltaConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def gated_delta(params: dict, x: jax.Array, config: GatedDeltaConfig, scheme: PositionsUnion):
    heads, length = config.num_heads, len(x)
    q, k, v = (heads_of(x, params[name]["kernel"]) for name in ("query", "key", "value"))
    mixed = silu(
        convolve(params["conv"], jnp.concatenate([a.reshape(length, -1) for a in (q, k, v)], -1))
    )
    size = heads * q.shape[-1]
    q, k, v = (
        part.reshape(length, heads, -1) for part in jnp.split(mixed, [size, 2 * size], axis=-1)
    )
    q, k = unit(q), unit(k)
    alpha = jnp.exp(
        -jnp.exp(params["a_log"]) * softplus(x @ params["decay"]["kernel"] + params["dt_bias"])
    )
    beta = sigmoid(x @ params["beta"]["kernel"]) * (2 if config.negative_eigenvalues else 1)
    eye, rows = jnp.eye(q.shape[-1]), []
    memory = jnp.zeros((heads, q.shape[-1], v.shape[-1]))
    for t in range(length):
        for h in range(heads):
            erase = eye - beta[t, h] * jnp.outer(k[t, h], k[t, h])
            written = beta[t, h] * jnp.outer(k[t, h], v[t, h])
            memory = memory.at[h].set(alpha[t, h] * erase @ memory[h] + written)
        rows.append(jnp.einsum("hkv,hk->hv", memory, q[t]) / math.sqrt(q.shape[-1]))
    return gated_output(params["out"], jnp.stack(rows), x)


CASES = {
    "gated_delta": Case(
        GatedDeltaConfig(num_heads=2, head_dim=4, value_expansion=1.5, negative_eigenvalues=True),
        NoPositionsConfig(),
        gated_delta,
    )
}
