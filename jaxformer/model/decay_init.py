"""How decays a = exp(−e^{A} Δ) start (Gu and Dao, 2023, arXiv:2312.00752, section 3.6)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

SMALLEST_STEP, LARGEST_STEP, STEP_FLOOR = 1e-3, 1e-1, 1e-4


def a_log_init(low: float, high: float) -> nn.initializers.Initializer:
    """The log of a number that is uniform in [low, high) and kept away from zero."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        tiny = jnp.finfo(dtype).tiny
        return jnp.log(jnp.maximum(jax.random.uniform(key, shape, dtype, low, high), tiny))

    return init


def dt_bias_init(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """softplus⁻¹(Δ) of a step Δ that is log-uniform in [0.001, 0.1]."""
    step = jnp.maximum(jnp.exp(log_step_init(key, shape, dtype)), STEP_FLOOR)
    return step + jnp.log(-jnp.expm1(-step))


def log_step_init(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """log Δ of the steps of `dt_bias_init`."""
    low, high = (jnp.log(jnp.asarray(step, dtype)) for step in (SMALLEST_STEP, LARGEST_STEP))
    return jax.random.uniform(key, shape, dtype, low, high)


def s4d_real_init(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """log(1, …, state_size) for every channel [channels, state_size] (arXiv:2206.11893)."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[1] + 1, dtype=dtype)), shape)
