"""DeltaProduct, arXiv:2502.10297."""

import math

import jax
import jax.numpy as jnp
from contracts.definition import (
    Case,
    convolved_heads,
    gated_output,
    rms,
    sigmoid,
    softplus,
    unit,
)

from jaxformer.model.mixers.delta_product import DeltaProductConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def delta_product(params: dict, x: jax.Array, config: DeltaProductConfig, scheme: PositionsUnion):
    q, k, v = convolved_heads(params, x)  # k and v [length, steps, heads, head_dim]
    q, k = unit(q), unit(k)
    beta = sigmoid(jnp.einsum("ld,dnh->lnh", x, params["beta"]["kernel"]))
    beta *= 2 if config.negative_eigenvalues else 1
    alpha = jnp.ones((len(x), config.num_heads))
    if config.forget_gate:
        step = softplus(x @ params["decay"]["kernel"] + params["dt_bias"])
        alpha = jnp.exp(-jnp.exp(params["a_log"]) * step)
    eye, rows = jnp.eye(q.shape[-1]), []
    memory = jnp.zeros((config.num_heads, q.shape[-1], v.shape[-1]))
    for t in range(len(x)):
        transition, written = alpha[t, :, None, None] * eye, jnp.zeros_like(memory)
        for j in range(config.num_householder):
            strength, key, value = beta[t, j, :, None, None], k[t, j, :, :, None], v[t, j]
            householder = eye - strength * key * key.swapaxes(1, 2)
            transition = householder @ transition
            written = householder @ written + strength * key * value[:, None]
        memory = transition @ memory + written
        rows.append(jnp.einsum("hkv,hk->hv", memory, q[t]) / math.sqrt(q.shape[-1]))
    o, out = jnp.stack(rows), params["out"]
    if config.output_gate:
        return gated_output(out, o, x, config.norm_eps)
    return jnp.einsum("lhv,hvd->ld", rms(o, out["scale"], config.norm_eps), out["output"]["kernel"])


CASES = {
    "delta_product": Case(
        DeltaProductConfig(
            num_heads=2, head_dim=4, value_expansion=1.5, num_householder=3, norm_eps=0.01
        ),
        NoPositionsConfig(),
        delta_product,
    ),
    "delta_product_forget": Case(
        DeltaProductConfig(
            num_heads=3,
            head_dim=4,
            value_expansion=0.5,
            negative_eigenvalues=False,
            forget_gate=True,
            output_gate=False,
        ),
        NoPositionsConfig(),
        delta_product,
    ),
}
