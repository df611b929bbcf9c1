"""Any recurrence, one token at a time: the definition of what the chunked forms compute."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def token_by_token(
    step: Callable[..., tuple[jax.Array, Any]], inputs: tuple, segment_ids: jax.Array, state: Any
) -> tuple[jax.Array, Any]:
    """Scan `step(*inputs of one token, segment_ids, state) → (o, state)` over the length.

    Args:
        step: an engine, which takes arrays [batch, 1, ...].
        inputs: arrays [batch, length, ...].
    """

    def advance(state: Any, token: tuple) -> tuple[Any, jax.Array]:
        *inputs, segment = (x[:, None] for x in token)
        o, state = step(*inputs, segment, state)
        return state, o[:, 0]

    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in (*inputs, segment_ids))
    state, o = jax.lax.scan(advance, state, tokens)
    return jnp.moveaxis(o, 0, 1), state
