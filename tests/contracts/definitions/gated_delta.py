"""Gated DeltaNet, arXiv:2412.06464."""

import math

import jax
import jax.numpy as jnp
from contracts.definition import (
    Case,
    convolved_heads,
    gated_output,
    sigmoid,
    softplus,
    unit,
)

from jaxformer.model.mixers.gated_delta import GatedDeltaConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def gated_delta(params: dict, x: jax.Array, config: GatedDeltaConfig, scheme: PositionsUnion):
    heads, length = config.num_heads, len(x)
    q, k, v = convolved_heads(params, x)
    of_head = [head * config.key_heads // heads for head in range(heads)]
    q, k = unit(q)[:, of_head], unit(k)[:, of_head]
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
    return gated_output(params["out"], jnp.stack(rows), x, config.norm_eps)


CASES = {
    "gated_delta": Case(
        GatedDeltaConfig(num_heads=2, head_dim=4, value_expansion=1.5, negative_eigenvalues=True),
        NoPositionsConfig(),
        gated_delta,
    ),
    "gated_delta_key_heads": Case(
        GatedDeltaConfig(
            num_heads=4, num_key_heads=2, head_dim=4, value_expansion=0.75, norm_eps=0.01
        ),
        NoPositionsConfig(),
        gated_delta,
    ),
}
