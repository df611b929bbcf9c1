"""Gated DeltaNet-2, arXiv:2605.22791."""

import math

import jax
import jax.numpy as jnp
from contracts.definition import Case, convolved_heads, heads_of, rms, sigmoid, silu, softplus, unit

from jaxformer.model.mixers.gated_delta2 import GatedDelta2Config
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def gated_delta2(params: dict, x: jax.Array, config: GatedDelta2Config, scheme: PositionsUnion):
    def low_rank(name: str) -> jax.Array:
        return heads_of(x @ params[f"{name}_in"]["kernel"], params[f"{name}_out"]["kernel"])

    q, k, v = convolved_heads(params, x)
    q, k = unit(q), unit(k)
    step = softplus(low_rank("decay") + params["dt_bias"])
    alpha = jnp.exp(-jnp.exp(params["a_log"])[:, None] * step)
    erase = sigmoid(heads_of(x, params["erase"]["kernel"]))
    erase *= 2 if config.negative_eigenvalues else 1
    write = sigmoid(heads_of(x, params["write"]["kernel"]))
    eye, rows = jnp.eye(q.shape[-1]), []
    memory = jnp.zeros((config.num_heads, q.shape[-1], v.shape[-1]))
    for t in range(len(x)):
        for h in range(config.num_heads):
            transition = eye - jnp.outer(k[t, h], erase[t, h] * k[t, h])
            written = jnp.outer(k[t, h], write[t, h] * v[t, h])
            memory = memory.at[h].set(transition @ jnp.diag(alpha[t, h]) @ memory[h] + written)
        rows.append(jnp.einsum("hkv,hk->hv", memory, q[t]) / math.sqrt(q.shape[-1]))
    gate = silu(low_rank("gate") + params["gate_out"]["bias"])
    y = rms(jnp.stack(rows), params["norm"]["scale"], config.norm_eps) * gate
    return jnp.einsum("lhv,hvd->ld", y, params["output"]["kernel"])


CASES = {
    "gated_delta2": Case(
        GatedDelta2Config(num_heads=2, head_dim=4, value_expansion=1.5),
        NoPositionsConfig(),
        gated_delta2,
    ),
    "gated_delta2_negative": Case(
        GatedDelta2Config(num_heads=3, head_dim=4, negative_eigenvalues=True, norm_eps=0.01),
        NoPositionsConfig(),
        gated_delta2,
    ),
}
