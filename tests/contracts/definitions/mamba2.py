"""Mamba-2, arXiv:2405.21060."""

import jax
import jax.numpy as jnp
from contracts.definition import Case, convolve, heads_of, silu, softplus

from jaxformer.model.mixers.mamba2 import Mamba2Config
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def mamba2(params: dict, u: jax.Array, config: Mamba2Config, scheme: PositionsUnion):
    """One head at a time; its state [head_dim, state_size] as the paper's h."""
    x, b, c, z = (heads_of(u, params[name]["kernel"]) for name in ("x", "b", "c", "z"))
    length, heads, head_dim = x.shape
    mixed = silu(
        convolve(params["conv"], jnp.concatenate([a.reshape(length, -1) for a in (x, b, c)], -1))
    )
    ends = [x[0].size, x[0].size + b[0].size]
    x, b, c = (
        part.reshape(like.shape)
        for part, like in zip(jnp.split(mixed, ends, -1), (x, b, c), strict=True)
    )
    delta = softplus(u @ params["dt"]["kernel"] + params["dt_bias"])
    y = jnp.zeros((length, heads, head_dim))
    for head in range(heads):
        group = head * config.num_groups // heads
        h = jnp.zeros((head_dim, config.state_size))
        for t in range(length):
            decay = jnp.exp(-jnp.exp(params["a_log"][head]) * delta[t, head])
            h = decay * h + delta[t, head] * jnp.outer(x[t, head], b[t, group])
            y = y.at[t, head].set(h @ c[t, group] + params["skip"][head] * x[t, head])
    gated = (y * silu(z)).reshape(length, config.num_groups, -1)
    mean = jnp.mean(gated**2, axis=-1, keepdims=True)
    normal = (gated / jnp.sqrt(mean + 1e-5)).reshape(length, -1) * params["scale"].reshape(-1)
    return normal @ params["output"]["kernel"].reshape(heads * head_dim, -1)


CASES = {
    "mamba2": Case(
        Mamba2Config(head_dim=4, state_size=5, num_groups=2), NoPositionsConfig(), mamba2
    ),
}
