"""Tensor product attention, arXiv:2501.06425."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from contracts.definition import ROPE, Case, compiled, heads_of, rotate

from jaxformer.model.mixers.tensor_product import TensorProductConfig
from jaxformer.model.positions import ALiBiConfig, PositionsUnion, RoPEConfig


def tensor_product(
    params: dict,
    x: jax.Array,
    config: TensorProductConfig,
    scheme: PositionsUnion,
    is_causal: bool = True,
) -> jax.Array:
    """Every head's queries, keys and values from all outer products, one query at a time."""

    def whole(name: str, *, turned: bool) -> jax.Array:
        heads = heads_of(x, params[f"{name}_heads"]["kernel"])
        features = heads_of(x, params[f"{name}_features"]["kernel"])
        if turned and isinstance(scheme, RoPEConfig):
            features = rotate(features, scheme)
        products = heads[:, :, :, None] * features[:, :, None, :]
        return products.mean(axis=1)

    q, k = whole("query", turned=True), whole("key", turned=True)
    v = whole("value", turned=False)
    rows = []
    for t in range(len(x)):
        heads, end = [], t + 1 if is_causal else len(x)
        for head in range(config.num_heads):
            logits = k[:end, head] @ q[t, head] / math.sqrt(q.shape[-1])
            if isinstance(scheme, ALiBiConfig):
                logits -= 2.0 ** (-8 * (head + 1) / config.num_heads) * abs(t - jnp.arange(end))
            weights = jnp.exp(logits)
            heads.append(weights / weights.sum() @ v[:end, head])
        rows.append(jnp.einsum("hv,hvd->d", jnp.stack(heads), params["output"]["kernel"]))
    return jnp.stack(rows)


def _case(scheme: PositionsUnion, **options: Any) -> Case:
    config = TensorProductConfig(num_heads=2, head_dim=4, query_rank=3, **options)
    wide = config.model_copy(update={"num_heads": 4, "head_dim": 64})
    return Case(config, scheme, tensor_product, wide)


CASES = {
    "tensor_product": _case(ROPE),
    "tensor_product_alibi": _case(ALiBiConfig(), key_rank=1),
}

full = compiled(partial(tensor_product, is_causal=False))
ENCODERS = {"encoder_tensor_product": _case(ROPE)._replace(definition=full, is_causal=False)}
