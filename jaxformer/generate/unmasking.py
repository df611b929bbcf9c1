"""Which hidden tokens become known in a step of diffusion, and as what."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxformer.errors import UserError
from jaxformer.generate.sampling import Sampling, filter_logits
from jaxformer.model.inputs import MASK


@dataclass(frozen=True)
class Unmasking:
    """How many tokens become known at once.

    steps: passes over what is decoded at once, which share its tokens evenly; None is one token in
        each pass. Which ones: with temperature 0, those with the likeliest tokens (LLaDA, Nie et
        al., 2025, arXiv:2502.09992); otherwise random ones, so that one token in each pass samples
        the model's own distribution (MDLM, Sahoo et al., 2024, arXiv:2406.07524).
    entropy_bound: instead of a number of passes, take tokens in the order of their entropies, as
        long as those before sum to at most so many nats (EB-Sampler, Ben-Hamu et al., 2025,
        arXiv:2505.24857).

    Raises:
        UserError: a value outside of its range, or both.
    """

    steps: int | None = None
    entropy_bound: float | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.entropy_bound is not None:
            raise UserError(
                "steps and entropy_bound both say how many tokens a pass decides; give one"
            )
        if self.steps is not None and self.steps < 1:
            raise UserError(f"steps is {self.steps}; allowed: 1 or more")
        if self.entropy_bound is not None and not 0 <= self.entropy_bound < float("inf"):
            raise UserError(f"entropy_bound is {self.entropy_bound}; allowed: 0 or more, in nats")


def unmask(
    tokens: jax.Array,
    logits: jax.Array,
    step: jax.Array,
    at_first: jax.Array,
    key: jax.Array,
    sampling: Sampling,
    unmasking: Unmasking,
) -> jax.Array:
    """Decide some tokens that are MASK; at least one per row where a row has any, unless `steps`
    outnumber them.

    Args:
        tokens: [batch, length].
        logits: [batch, length, vocab], those of each token in its own place.
        step: how many passes there were before this one.
        at_first: [batch], how many tokens of each row were hidden before the first pass.

    Returns:
        [batch, length].
    """
    of_tokens, of_places = jax.random.split(key)
    hidden = tokens == MASK
    drawn = draw(logits, of_tokens, sampling)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    if unmasking.entropy_bound is not None:
        entropies = -jnp.sum(
            jnp.where(log_probs > -jnp.inf, jnp.exp(log_probs) * log_probs, 0.0), -1
        )
        entropies = jnp.where(hidden, entropies, jnp.inf)
        place = _place(entropies)
        rising = jnp.sort(entropies, axis=1)
        before = jnp.cumsum(rising, axis=1) - rising
        taken = jnp.take_along_axis(before <= unmasking.entropy_bound, place, axis=1)
    else:
        if sampling.temperature == 0:
            preference = jnp.max(log_probs, axis=-1)
        else:
            preference = jax.random.uniform(of_places, tokens.shape)
        steps = unmasking.steps or tokens.shape[1]
        count = (step + 1) * at_first // steps - step * at_first // steps
        taken = _place(jnp.where(hidden, -preference, jnp.inf)) < count[:, None]
    return jnp.where(hidden & taken, drawn, tokens)


def draw(logits: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """A token for every place: [batch, length, vocab] → [batch, length], int32.

    The Gumbel noise of a draw has all bits of its uniform numbers: with few, the largest of many
    draws are cut off, which lowers the temperature (Zheng et al., 2024, arXiv:2409.02908).
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    flat = filter_logits(logits.reshape(-1, logits.shape[-1]), sampling)
    drawn = jax.random.categorical(key, flat, axis=-1, mode="high")
    return drawn.reshape(logits.shape[:-1]).astype(jnp.int32)


def _place(values: jax.Array) -> jax.Array:
    """[batch, length], each value's place among those of its row, the lowest first."""
    return jnp.argsort(jnp.argsort(values, axis=1), axis=1)
