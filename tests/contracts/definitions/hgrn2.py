"""HGRN2, arXiv:2404.07904."""

import jax
import jax.numpy as jnp
from contracts.definition import Case, heads_of, rms, sigmoid, silu

from jaxformer.model.mixers.hgrn2 import HGRN2Config
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def hgrn2(params: dict, x: jax.Array, config: HGRN2Config, scheme: PositionsUnion):
    q, forget, i = (heads_of(x, params[name]["kernel"]) for name in ("query", "forget", "input"))
    f = config.lower_bound + (1 - config.lower_bound) * sigmoid(forget)
    memory, rows = jnp.zeros((config.num_heads, f.shape[-1], i.shape[-1])), []
    for t in range(len(x)):
        written = jnp.stack([jnp.outer(1 - f[t, h], i[t, h]) for h in range(config.num_heads)])
        memory = f[t, :, :, None] * memory + written
        rows.append(jnp.einsum("hkv,hk->hv", memory, silu(q[t])))
    o = jnp.stack(rows).reshape(len(x), -1)
    return rms(o, params["norm"]["scale"]) @ params["output"]["kernel"]


CASES = {
    "hgrn2": Case(HGRN2Config(num_heads=2, state_expansion=5), NoPositionsConfig(), hgrn2),
    "hgrn2_lower_bound": Case(
        HGRN2Config(num_heads=3, state_expansion=5, lower_bound=0.3), NoPositionsConfig(), hgrn2
    ),
}
