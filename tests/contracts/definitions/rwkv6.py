"""RWKV-6, Finch, arXiv:2404.05892, with the paper's memory [keys, values]."""

import jax
import jax.numpy as jnp
from contracts.definition import Case, silu

from jaxformer.model.mixers.rwkv6 import RWKV6Config
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def rwkv6(params: dict, x: jax.Array, config: RWKV6Config, scheme: PositionsUnion):
    length, size = len(x), config.head_dim
    before = jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])

    def between(share: jax.Array) -> jax.Array:
        return (1 - share) * x + share * before

    low = jnp.tanh(between(params["mix_all"]) @ params["mix_in"]["kernel"])
    seen = {}
    for place, name in enumerate(("decay", "key", "value", "receptance", "gate")):
        own = low[:, place * config.mix_rank : (place + 1) * config.mix_rank]
        seen[name] = between(params[f"mix_{name}"] + own @ params[f"mix_{name}_out"]["kernel"])

    def heads(name: str) -> jax.Array:
        return jnp.tensordot(seen[name], params[name]["kernel"], 1)

    r, k, v, g = heads("receptance"), heads("key"), heads("value"), silu(heads("gate"))
    low = jnp.tanh(seen["decay"] @ params["decay_in"]["kernel"])
    raw = params["decay_bias"] + jnp.tensordot(low, params["decay_out"]["kernel"], 1)
    w = jnp.exp(-jnp.exp(raw))
    memory, rows = jnp.zeros((r.shape[1], size, size)), []
    for t in range(length):
        own = k[t, :, :, None] * v[t, :, None, :]
        read = memory + params["bonus"][:, :, None] * own
        memory = w[t, :, :, None] * memory + own
        o = jnp.einsum("hkv,hk->hv", read, r[t])
        o = (o - o.mean(-1, keepdims=True)) / jnp.sqrt(o.var(-1, keepdims=True) + 64e-5)
        rows.append(o * params["norm_scale"] + params["norm_bias"])
    return jnp.einsum("lhv,hvd->ld", jnp.stack(rows) * g, params["output"]["kernel"])


CASES = {
    "rwkv6": Case(RWKV6Config(head_dim=4, mix_rank=3, decay_rank=5), NoPositionsConfig(), rwkv6),
}
