"""Multi-head latent attention, arXiv:2405.04434."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from contracts.definition import ROPE, Case, compiled, heads_of, rms, rotate

from jaxformer.model.mixers.latent_attention import LatentAttentionConfig
from jaxformer.model.positions import ALiBiConfig, PositionsUnion, RoPEConfig


def latent_attention(
    params: dict,
    x: jax.Array,
    config: LatentAttentionConfig,
    scheme: PositionsUnion,
    is_causal: bool = True,
) -> jax.Array:
    """Keys and values of every token and head made in full, one query at a time."""

    def latent(name: str) -> jax.Array:
        return rms(x @ params[name]["kernel"], params[f"{name}_norm"]["scale"])

    def turn(y: jax.Array) -> jax.Array:
        return rotate(y, scheme) if isinstance(scheme, RoPEConfig) else y

    q = heads_of(
        x if config.query_rank is None else latent("query_latent"), params["query"]["kernel"]
    )
    plain_q, turned_q = q[..., : config.head_dim], turn(q[..., config.head_dim :])
    kv = heads_of(latent("latent"), params["expand"]["kernel"])
    plain_k, v = kv[..., : config.head_dim], kv[..., config.head_dim :]
    turned_k = turn((x @ params["rotary_key"]["kernel"])[:, None])[:, 0]
    rows = []
    for t in range(len(x)):
        heads, end = [], t + 1 if is_causal else len(x)
        for head in range(config.num_heads):
            logits = plain_k[:end, head] @ plain_q[t, head] + turned_k[:end] @ turned_q[t, head]
            logits /= math.sqrt(config.head_dim + config.rope_dim)
            if isinstance(scheme, ALiBiConfig):
                logits -= 2.0 ** (-8 * (head + 1) / config.num_heads) * abs(t - jnp.arange(end))
            weights = jnp.exp(logits)
            heads.append(weights / weights.sum() @ v[:end, head])
        rows.append(jnp.einsum("hv,hvd->d", jnp.stack(heads), params["output"]["kernel"]))
    return jnp.stack(rows)


def _case(scheme: PositionsUnion, **options: Any) -> Case:
    sizes = {"num_heads": 2, "head_dim": 5, "rope_dim": 4, "value_dim": 3, "kv_rank": 7}
    config = LatentAttentionConfig(**sizes, **options)
    wide = {"head_dim": 64, "rope_dim": 32, "value_dim": 48, "kv_rank": 128}
    return Case(config, scheme, latent_attention, config.model_copy(update=wide))


CASES = {
    "latent_attention": _case(ROPE, query_rank=6),
    "latent_attention_alibi": _case(ALiBiConfig()),
}

full = compiled(partial(latent_attention, is_causal=False))
ENCODERS = {
    "encoder_latent_attention": _case(ROPE)._replace(definition=full, is_causal=False),
}
