"""Comba, arXiv:2506.02475."""

import math

import jax
import jax.numpy as jnp
from contracts.definition import (
    Case,
    convolved_heads,
    heads_of,
    rms,
    sigmoid,
    softplus,
    unit,
)

from jaxformer.model.mixers.comba import CombaConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def comba(params: dict, x: jax.Array, config: CombaConfig, scheme: PositionsUnion):
    q, k, v = convolved_heads(params, x)
    q, k = unit(q), unit(k)
    step = softplus(x @ params["decay"]["kernel"] + params["dt_bias"])
    alpha = jnp.exp(-jnp.exp(params["a_log"]) * step)
    beta = sigmoid(x @ params["beta"]["kernel"])
    erased = sigmoid(params["feedback"]) * beta  # the paper's β̃
    eye, rows = jnp.eye(config.head_dim), []
    memory = jnp.zeros((config.num_heads, config.head_dim, v.shape[-1]))
    for t in range(len(x)):
        for h in range(config.num_heads):
            transition = alpha[t, h] * eye - erased[t, h] * jnp.outer(k[t, h], k[t, h])
            written = beta[t, h] * jnp.outer(k[t, h], v[t, h])
            memory = memory.at[h].set(transition @ memory[h] + written)
        query = q[t] - params["correction"][:, None] * k[t]
        rows.append(jnp.einsum("hkv,hk->hv", memory, query) / math.sqrt(config.head_dim))
    out = params["out"]
    y = rms(jnp.stack(rows), out["scale"], config.norm_eps)
    if config.output_gate:
        y *= sigmoid(heads_of(x, out["gate"]["kernel"]))
    return jnp.einsum("lhv,hvd->ld", y, out["output"]["kernel"])


CASES = {
    "comba": Case(
        CombaConfig(num_heads=2, head_dim=4, value_expansion=1.5), NoPositionsConfig(), comba
    ),
    "comba_without_gate": Case(
        CombaConfig(
            num_heads=3,
            head_dim=4,
            value_expansion=0.5,
            output_correction=0.02,
            output_gate=False,
            norm_eps=0.01,
        ),
        NoPositionsConfig(),
        comba,
    ),
}
