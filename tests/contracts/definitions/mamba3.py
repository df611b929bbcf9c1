"""Mamba-3 with one input and one output per head, arXiv:2603.15569."""

import jax
import jax.numpy as jnp
from contracts.definition import Case, heads_of, rms, sigmoid, silu, softplus

from jaxformer.model.mixers.mamba3 import Mamba3Config
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def mamba3(params: dict, u: jax.Array, config: Mamba3Config, scheme: PositionsUnion):
    """One head at a time; its state [head_dim, state_size] as the paper's h. Turned states are
    complex numbers, whose real part is the first half of the pairs."""
    x, z = heads_of(u, params["x"]["kernel"]), heads_of(u, params["z"]["kernel"])
    length, heads, head_dim = x.shape
    pairs = config.pairs
    delta = softplus(u @ params["dt"]["kernel"] + params["dt_bias"])
    rate = jnp.maximum(softplus(u @ params["a"]["kernel"]), 1e-4)
    mix = sigmoid(u @ params["trapezoid"]["kernel"])
    speed = jnp.pi * jnp.tanh(u @ params["angle"]["kernel"])

    def states(name: str, head: int) -> jax.Array:
        group = head * config.num_groups // heads
        own = u @ params[name]["kernel"][:, group]
        own = rms(own, params[f"{name}_norm"]["scale"], 1e-5) + params[f"{name}_bias"][head]
        angles = jnp.cumsum(speed * delta[:, head, None], axis=0)
        turned = (own[:, :pairs] + 1j * own[:, pairs : 2 * pairs]) * jnp.exp(1j * angles)
        return jnp.concatenate([turned.real, turned.imag, own[:, 2 * pairs :]], axis=1)

    y = jnp.zeros((length, heads, head_dim))
    for head in range(heads):
        b, c = states("b", head), states("c", head)
        h = before = jnp.zeros((head_dim, config.state_size))
        for t in range(length):
            step = delta[t, head]
            alpha, entering = jnp.exp(-rate[t, head] * step), jnp.outer(x[t, head], b[t])
            beta, gamma = (1 - mix[t, head]) * step * alpha, mix[t, head] * step
            h = alpha * h + beta * before + gamma * entering
            before = entering
            y = y.at[t, head].set(h @ c[t] + params["skip"][head] * x[t, head])
    return jnp.einsum("lhv,hvd->ld", y * silu(z), params["output"]["kernel"])


CASES = {
    "mamba3": Case(
        Mamba3Config(head_dim=4, state_size=8, num_groups=2), NoPositionsConfig(), mamba3
    ),
    "mamba3_all_turned": Case(
        Mamba3Config(expansion=1.0, head_dim=6, state_size=5, rope_fraction=1.0),
        NoPositionsConfig(),
        mamba3,
    ),
}
