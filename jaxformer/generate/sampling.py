"""From logits to the next token: greedy, temperature, top-k, top-p, min-p."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxformer.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn; filters apply in the order of the fields, each to what the one before
    left, and the likeliest token always stays.

    temperature: logits are divided by it; 0 takes the likeliest token.
    top_k: keep the k likeliest.
    top_p: keep the fewest likeliest whose probabilities sum to at least p (Holtzman et al., 2019,
        arXiv:1904.09751).
    min_p: keep those at least p times as probable as the likeliest (Nguyen et al., 2024,
        arXiv:2407.01082).

    Raises:
        UserError: a value outside of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}; allowed: 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; allowed: 1 or more, or leave it out for all")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(f"{name} is {value}; allowed: more than 0, at most 1")


def filter_logits(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Apply temperature and filters: [batch, vocab] → the same, −∞ where a token is excluded."""
    logits = logits / sampling.temperature
    lowest = jnp.full_like(logits[:, :1], -jnp.inf)  # of the logits that stay
    if sampling.top_k is not None:
        k = min(sampling.top_k, logits.shape[-1])
        lowest = jax.lax.top_k(logits, k)[0][:, -1:]
    if sampling.top_p is not None:
        kept = jnp.where(logits < lowest, -jnp.inf, logits)
        descending = -jnp.sort(-kept, axis=-1)
        before = jnp.cumsum(jax.nn.softmax(descending, axis=-1), axis=-1, dtype=jnp.float32)
        before -= jax.nn.softmax(descending, axis=-1)
        in_nucleus = jnp.where(before < sampling.top_p, descending, jnp.inf)
        lowest = jnp.maximum(lowest, jnp.min(in_nucleus, axis=-1, keepdims=True))
    if sampling.min_p is not None:
        highest = jnp.max(logits, axis=-1, keepdims=True)
        lowest = jnp.maximum(lowest, highest + jnp.log(sampling.min_p))
    return jnp.where(logits < lowest, -jnp.inf, logits)


def sample(logits: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """Draw one token per row: [batch, vocab] → [batch]."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1)
    return jax.random.categorical(key, filter_logits(logits, sampling), axis=-1)
