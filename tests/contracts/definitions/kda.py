"""Kimi Delta Attention, arXiv:2510.26692."""

import math

import jax
import jax.numpy as jnp
from contracts.definition import Case, convolved_heads, heads_of, rms, sigmoid, softplus, unit

from jaxformer.model.mixers.kda import KDAConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def kda(params: dict, x: jax.Array, config: KDAConfig, scheme: PositionsUnion):
    def low_rank(name: str) -> jax.Array:
        return heads_of(x @ params[f"{name}_in"]["kernel"], params[f"{name}_out"]["kernel"])

    q, k, v = convolved_heads(params, x)
    q, k = unit(q), unit(k)
    step = softplus(low_rank("decay") + params["dt_bias"])
    alpha = jnp.exp(-jnp.exp(params["a_log"])[:, None] * step)
    beta = sigmoid(x @ params["beta"]["kernel"])
    eye, rows = jnp.eye(q.shape[-1]), []
    memory = jnp.zeros((config.num_heads, q.shape[-1], v.shape[-1]))
    for t in range(len(x)):
        for h in range(config.num_heads):
            erase = eye - beta[t, h] * jnp.outer(k[t, h], k[t, h])
            written = beta[t, h] * jnp.outer(k[t, h], v[t, h])
            memory = memory.at[h].set(erase @ jnp.diag(alpha[t, h]) @ memory[h] + written)
        rows.append(jnp.einsum("hkv,hk->hv", memory, q[t]) / math.sqrt(q.shape[-1]))
    gate = sigmoid(low_rank("gate") + params["gate_out"].get("bias", 0.0))
    y = rms(jnp.stack(rows), params["norm"]["scale"], config.norm_eps) * gate
    return jnp.einsum("lhv,hvd->ld", y, params["output"]["kernel"])


CASES = {
    "kda": Case(KDAConfig(num_heads=2, head_dim=4, value_expansion=1.5), NoPositionsConfig(), kda),
    "kda_gate_without_bias": Case(
        KDAConfig(num_heads=2, head_dim=4, gate_bias=False, norm_eps=0.01),
        NoPositionsConfig(),
        kda,
    ),
}
