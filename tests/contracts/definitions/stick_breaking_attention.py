"""Stick-breaking attention, arXiv:2410.17980."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from contracts.definition import Case, heads_of, sigmoid

from jaxformer.model.mixers.stick_breaking_attention import StickBreakingAttentionConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def stick_breaking_attention(
    params: dict, x: jax.Array, config: StickBreakingAttentionConfig, scheme: PositionsUnion
) -> jax.Array:
    """A stick is broken at one key after another, from the nearest to the first, one query and one
    head at a time."""
    q, k, v = (heads_of(x, params[name]["kernel"]) for name in ("query", "key", "value"))
    group = config.num_heads // config.kv_heads
    scale = config.scale or 1 / math.sqrt(q.shape[-1])
    rows = []
    for t in range(len(x)):
        heads = []
        for head in range(config.num_heads):
            stick, read = jnp.ones(()), jnp.zeros(v.shape[-1])
            for s in reversed(range(t)):
                share = sigmoid(scale * k[s, head // group] @ q[t, head])
                read += stick * share * v[s, head // group]
                stick *= 1 - share
            heads.append(read + stick * v[t, head // group] if config.remainder else read)
        rows.append(jnp.stack(heads))
    return jnp.einsum("lhf,hfd->ld", jnp.stack(rows), params["output"]["kernel"])


def _case(**options: Any) -> Case:
    config = StickBreakingAttentionConfig(**({"num_heads": 2, "head_dim": 4} | options))
    wide = config.model_copy(update={"head_dim": 64})
    return Case(config, NoPositionsConfig(), stick_breaking_attention, wide)


CASES = {
    "stick_breaking_attention": _case(),
    "stick_breaking_attention_remainder": _case(
        num_heads=4, num_kv_heads=2, remainder=True, scale=0.7
    ),
}
