"""DeltaNet, arXiv:2406.06484."""

import math

import jax
import jax.numpy as jnp
from contracts.definition import (
    Case,
    convolved_heads,
    gated_output,
    rms,
    sigmoid,
    unit,
)

from jaxformer.model.mixers.delta import DeltaConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def delta(params: dict, x: jax.Array, config: DeltaConfig, scheme: PositionsUnion):
    q, k, v = convolved_heads(params, x)
    q, k = unit(q), unit(k)
    beta = sigmoid(x @ params["beta"]["kernel"]) * (2 if config.negative_eigenvalues else 1)
    memory, rows = jnp.zeros((config.num_heads, q.shape[-1], v.shape[-1])), []
    for t in range(len(x)):
        for h in range(config.num_heads):
            old = k[t, h] @ memory[h]
            new = beta[t, h] * v[t, h] + (1 - beta[t, h]) * old
            memory = memory.at[h].add(jnp.outer(k[t, h], new - old))
        rows.append(jnp.einsum("hkv,hk->hv", memory, q[t]) / math.sqrt(q.shape[-1]))
    o, out = jnp.stack(rows), params["out"]
    if config.output_gate:
        return gated_output(out, o, x, config.norm_eps)
    return jnp.einsum("lhv,hvd->ld", rms(o, out["scale"], config.norm_eps), out["output"]["kernel"])


CASES = {
    "delta": Case(
        DeltaConfig(num_heads=2, head_dim=4, value_expansion=1.5), NoPositionsConfig(), delta
    ),
    "delta_gated_negative": Case(
        DeltaConfig(
            num_heads=3, head_dim=4, negative_eigenvalues=True, output_gate=True, norm_eps=0.01
        ),
        NoPositionsConfig(),
        delta,
    ),
}
