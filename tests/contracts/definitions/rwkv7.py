"""RWKV-7, arXiv:2503.14456, with the paper's memory [values, keys]."""

import math

import jax
import jax.numpy as jnp
from contracts.definition import Case, heads_of, sigmoid, unit

from jaxformer.model.mixers.rwkv7 import RWKV7Config
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def rwkv7(params: dict, x: jax.Array, config: RWKV7Config, scheme: PositionsUnion):
    length, size = len(x), config.head_dim
    before = jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])

    def seen(name: str) -> jax.Array:
        mix = params[f"mix_{name}"]
        return (1 - mix) * x + mix * before

    def low_rank(name: str, activation) -> jax.Array:
        low = activation(seen(name) @ params[f"{name}_in"]["kernel"])
        return (low @ params[f"{name}_out"]["kernel"]).reshape(length, -1, size)

    r, k, v = (heads_of(seen(n), params[n]["kernel"]) for n in ("receptance", "key", "value"))
    raw = params["decay_bias"] + low_rank("decay", jnp.tanh)
    w = jnp.exp(-math.exp(-0.5) * sigmoid(raw))
    a = sigmoid(params["rate_bias"] + low_rank("rate", lambda y: y))
    g = low_rank("gate", sigmoid)
    removal = unit(k * params["removal"])
    replacement = k * (1 + (a - 1) * params["replacement"])
    memory, rows = jnp.zeros((r.shape[1], size, size)), []
    for t in range(length):
        erase = removal[t, :, :, None] * (a[t] * removal[t])[:, None]
        transition = w[t, :, None] * jnp.eye(size) - erase
        memory = memory @ transition + v[t, :, :, None] * replacement[t, :, None]
        o = jnp.einsum("hvk,hk->hv", memory, r[t])
        o = (o - o.mean(-1, keepdims=True)) / jnp.sqrt(o.var(-1, keepdims=True) + size * 1e-5)
        bonus = jnp.einsum("hk,hk,hk->h", r[t], params["bonus"], replacement[t])
        rows.append(o * params["norm_scale"] + params["norm_bias"] + bonus[:, None] * v[t])
    return jnp.einsum("lhv,hvd->ld", jnp.stack(rows) * g, params["output"]["kernel"])


CASES = {"rwkv7": Case(RWKV7Config(head_dim=4), NoPositionsConfig(), rwkv7)}
