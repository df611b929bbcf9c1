"""Griffin's recurrent block, arXiv:2402.19427."""

import math

import jax
import jax.numpy as jnp
from contracts.definition import Case, convolve, sigmoid, softplus

from jaxformer.model.mixers.rglru import RGLRUConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def gelu(x: jax.Array) -> jax.Array:
    return 0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rglru(params: dict, x: jax.Array, config: RGLRUConfig, scheme: PositionsUnion):
    def gate(name: str, u: jax.Array) -> jax.Array:
        """One block after another: u [channels]."""
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        parts = jnp.split(u, config.num_heads)
        return jnp.concatenate(
            [sigmoid(part @ w + b) for part, w, b in zip(parts, kernel, bias, strict=True)]
        )

    def linear(name: str, x: jax.Array) -> jax.Array:
        return x @ params[name]["kernel"] + params[name]["bias"]

    inputs = convolve(params["conv"], linear("input", x))
    h, rows = 0.0, []
    for t, u in enumerate(inputs):
        a = jnp.exp(-8 * softplus(params["decay"]) * gate("recurrence_gate", u))
        factor = jnp.sqrt(1 - a**2) if t else 1.0
        h = a * h + factor * gate("input_gate", u) * u
        rows.append(linear("output", gelu(linear("gate", x[t])) * h))
    return jnp.stack(rows)


CASES = {
    "rglru": Case(RGLRUConfig(num_heads=3, expansion=1.5), NoPositionsConfig(), rglru),
}
