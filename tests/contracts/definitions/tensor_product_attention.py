"""Tensor product attention, arXiv:2501.06425."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from contracts.definition import ROPE, Case, compiled, rotate

from jaxformer.model.mixers.tensor_product_attention import TensorProductAttentionConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion, RoPEConfig


def tensor_product_attention(
    params: dict,
    x: jax.Array,
    config: TensorProductAttentionConfig,
    scheme: PositionsUnion,
    is_causal: bool = True,
) -> jax.Array:
    """Queries, keys and values are made in full, one product at a time, and then rotated."""

    def made(name: str) -> jax.Array:
        rank = config.ranks[name]
        a = (x @ params[f"{name}_heads"]["kernel"]).reshape(len(x), config.num_heads, rank)
        b = (x @ params[f"{name}_features"]["kernel"]).reshape(len(x), rank, -1)
        products = [a[:, :, r, None] * b[:, None, r] for r in range(rank)]
        return sum(products) / rank

    q, k, v = made("query"), made("key"), made("value")
    if isinstance(scheme, RoPEConfig):
        q, k = rotate(q, scheme), rotate(k, scheme)
    scale = config.scale or 1 / math.sqrt(q.shape[-1])
    rows = []
    for t in range(len(x)):
        end, heads = t + 1 if is_causal else len(x), []
        for head in range(config.num_heads):
            weights = jnp.exp(scale * k[:end, head] @ q[t, head])
            heads.append(weights / weights.sum() @ v[:end, head])
        rows.append(jnp.stack(heads))
    return jnp.einsum("lhf,hfd->ld", jnp.stack(rows), params["output"]["kernel"])


def _case(scheme: PositionsUnion, **options: Any) -> Case:
    sizes = {"num_heads": 3, "head_dim": 4, "query_rank": 3, "key_rank": 2, "value_rank": 1}
    config = TensorProductAttentionConfig(**(sizes | options))
    wide = config.model_copy(update={"head_dim": 64})
    return Case(config, scheme, tensor_product_attention, wide)


CASES = {
    "tensor_product_attention": _case(ROPE),
    "tensor_product_attention_scale": _case(NoPositionsConfig(), num_heads=2, scale=0.7),
}

full = compiled(partial(tensor_product_attention, is_causal=False))
ENCODERS = {
    "encoder_tensor_product_attention": _case(ROPE)._replace(definition=full, is_causal=False),
}
