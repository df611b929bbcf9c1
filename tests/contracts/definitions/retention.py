"""Retention, arXiv:2307.08621."""

import math

import jax
import jax.numpy as jnp
from contracts.definition import ROPE, Case, gated_output, heads_of, rotate

from jaxformer.model.mixers.retention import RetentionConfig
from jaxformer.model.positions import RoPEConfig


def retention(params: dict, x: jax.Array, config: RetentionConfig, scheme: RoPEConfig):
    q, k, v = (heads_of(x, params[name]["kernel"]) for name in ("query", "key", "value"))
    q, k = rotate(q, scheme), rotate(k, scheme)
    gamma = 1 - 2.0 ** (-5 - jnp.arange(config.num_heads))
    memory, rows = jnp.zeros((config.num_heads, q.shape[-1], v.shape[-1])), []
    for t in range(len(x)):
        memory = gamma[:, None, None] * memory + k[t, :, :, None] * v[t, :, None, :]
        rows.append(jnp.einsum("hkv,hk->hv", memory, q[t]) / math.sqrt(q.shape[-1]))
    return gated_output(params["out"], jnp.stack(rows), x)


CASES = {
    "retention": Case(RetentionConfig(num_heads=3), ROPE, retention, RetentionConfig(num_heads=4))
}
