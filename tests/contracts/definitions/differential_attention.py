"""Differential attention, arXiv:2410.05258."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from contracts.definition import ROPE, Case, compiled, heads_of, rms, rotate

from jaxformer.model.mixers.differential_attention import DifferentialAttentionConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion, RoPEConfig


def differential_attention(
    params: dict,
    x: jax.Array,
    config: DifferentialAttentionConfig,
    scheme: PositionsUnion,
    is_causal: bool = True,
) -> jax.Array:
    """The two maps subtracted, one query and one head at a time, in the lowest layer."""
    start = 0.2 if config.lambda_init is None else config.lambda_init
    q, k, v = (heads_of(x, params[name]["kernel"]) for name in ("query", "key", "value"))
    if isinstance(scheme, RoPEConfig):
        q, k = rotate(q, scheme), rotate(k, scheme)
    first, second = (
        jnp.exp(params[f"lambda_q{number}"] @ params[f"lambda_k{number}"]) for number in (1, 2)
    )
    weight = first - second + start
    group = config.num_heads // config.kv_heads
    scale = config.scale or 1 / math.sqrt(q.shape[-1])
    rows = []
    for t in range(len(x)):
        end, heads = t + 1 if is_causal else len(x), []
        for head in range(config.num_heads):
            maps = []
            for which in (0, 1):
                keys = k[:end, 2 * (head // group) + which]
                weights = jnp.exp(scale * keys @ q[t, 2 * head + which])
                maps.append(weights / weights.sum())
            heads.append((maps[0] - weight * maps[1]) @ v[:end, head // group])
        rows.append(jnp.stack(heads))
    y = (1 - start) * rms(jnp.stack(rows), params["out"]["scale"], eps=1e-5)
    return jnp.einsum("lhf,hfd->ld", y, params["out"]["output"]["kernel"])


def _case(scheme: PositionsUnion, **options: Any) -> Case:
    config = DifferentialAttentionConfig(**({"num_heads": 2, "head_dim": 4} | options))
    wide = config.model_copy(update={"head_dim": 32})
    return Case(config, scheme, differential_attention, wide)


CASES = {
    "differential_attention": _case(ROPE),
    "differential_attention_grouped": _case(
        NoPositionsConfig(), num_heads=4, num_kv_heads=2, lambda_init=0.8, scale=0.7
    ),
}

full = compiled(partial(differential_attention, is_causal=False))
ENCODERS = {
    "encoder_differential_attention": _case(ROPE)._replace(definition=full, is_causal=False),
}
