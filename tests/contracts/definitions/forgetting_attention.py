"""Forgetting attention, arXiv:2503.02130."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from contracts.definition import ROPE, Case, heads_of, rms, rotate, sigmoid

from jaxformer.model.mixers.forgetting_attention import ForgettingAttentionConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion, RoPEConfig


def forgetting_attention(
    params: dict, x: jax.Array, config: ForgettingAttentionConfig, scheme: PositionsUnion
) -> jax.Array:
    """The weight of a key is e^{q·k/√d} times the product of the gates of all tokens behind it, one
    query and one head at a time."""

    def normalized(y: jax.Array, name: str, is_given: bool) -> jax.Array:
        return rms(y, params[name]["scale"]) if is_given else y

    q, k, v = (heads_of(x, params[name]["kernel"]) for name in ("query", "key", "value"))
    q = normalized(q, "query_norm", config.qk_norm)
    k = normalized(k, "key_norm", config.qk_norm)
    if isinstance(scheme, RoPEConfig):
        q, k = rotate(q, scheme), rotate(k, scheme)
    forget = sigmoid(x @ params["forget"]["kernel"] + params["forget"]["bias"])
    group = config.num_heads // config.kv_heads
    scale = config.scale or 1 / math.sqrt(q.shape[-1])
    rows = []
    for t in range(len(x)):
        heads = []
        for head in range(config.num_heads):
            kept = jnp.stack([jnp.prod(forget[s + 1 : t + 1, head]) for s in range(t + 1)])
            weights = kept * jnp.exp(scale * k[: t + 1, head // group] @ q[t, head])
            heads.append(weights / weights.sum() @ v[: t + 1, head // group])
        rows.append(jnp.stack(heads))
    y = normalized(jnp.stack(rows), "output_norm", config.output_norm)
    if config.output_gate:
        y *= sigmoid(heads_of(x, params["gate"]["kernel"]))
    return jnp.einsum("lhf,hfd->ld", y, params["output"]["kernel"])


def _case(scheme: PositionsUnion, **options: Any) -> Case:
    config = ForgettingAttentionConfig(**({"num_heads": 2, "head_dim": 4} | options))
    wide = config.model_copy(update={"head_dim": 64})
    return Case(config, scheme, forgetting_attention, wide)


CASES = {
    "forgetting_attention": _case(NoPositionsConfig()),
    "forgetting_attention_pro": _case(
        ROPE, num_heads=4, num_kv_heads=2, qk_norm=True, output_norm=True, output_gate=True
    ),
}
