"""Linear attention, arXiv:2006.16236 and arXiv:2402.18668."""

import math

import jax
import jax.numpy as jnp
from contracts.definition import Case, heads_of

from jaxformer.model.mixers.linear_attention import LinearAttentionConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def linear_attention(
    params: dict, x: jax.Array, config: LinearAttentionConfig, scheme: PositionsUnion
):
    """As attention: the similarity of every query with every key before it, without a state."""
    q, k, v = (heads_of(x, params[name]["kernel"]) for name in ("query", "key", "value"))

    def positive(y: jax.Array) -> jax.Array:
        return jnp.where(y > 0, y + 1, jnp.exp(y))

    def similarity(query: jax.Array, key: jax.Array) -> jax.Array:
        if config.feature_map == "elu":
            return positive(query) @ positive(key)
        exponent = query @ key / math.sqrt(len(key))
        return 1 + exponent + exponent**2 / 2

    o = jnp.zeros_like(v)
    for head in range(config.num_heads):
        for t in range(len(x)):
            weights = jnp.stack([similarity(q[t, head], k[s, head]) for s in range(t + 1)])
            o = o.at[t, head].set(weights @ v[: t + 1, head] / (weights.sum() + 1e-6))
    return jnp.einsum("lhv,hvd->ld", o, params["output"]["kernel"])


CASES = {
    "linear_attention": Case(
        LinearAttentionConfig(num_heads=3, key_dim=5), NoPositionsConfig(), linear_attention
    ),
    "linear_attention_taylor": Case(
        LinearAttentionConfig(num_heads=2, key_dim=3, feature_map="taylor"),
        NoPositionsConfig(),
        linear_attention,
    ),
}
