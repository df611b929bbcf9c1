"""Which drafted tokens stay, and what follows them (Leviathan et al., 2022, arXiv:2211.17192).

A token x drawn from the draft's law q stays with probability min(1, p(x) / q(x)), p being the
target's law. The first that does not is replaced by a draw from (p − q)₊, normalised, and those
behind it are forgotten; if all stay, one more is drawn from p. Every token then has the law p:

    q(x) min(1, p(x) / q(x)) + Σ_y q(y) (1 − min(1, p(y) / q(y))) · (p − q)₊(x) / Σ (p − q)₊ = p(x).

Temperature and filters are part of both laws. A draft without probabilities is certain, q(x) = 1.
"""

import jax
import jax.numpy as jnp

from jaxformer.generate.sampling import Sampling, filter_logits


def accept(
    logits: jax.Array,
    drafted: jax.Array,
    probabilities: jax.Array | None,
    key: jax.Array,
    sampling: Sampling,
) -> tuple[jax.Array, jax.Array]:
    """How many of the drafted tokens of each row stay, and the token that follows them.

    Args:
        logits: [batch, γ + 1, vocab], the target's, before each drafted token and after the last.
        drafted: [batch, γ].
        probabilities: [batch, γ, vocab], q; None for a draft that is certain.

    Returns:
        ([batch], 0 to γ; [batch]).
    """
    if sampling.temperature == 0:
        likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        accepted = count_leading(drafted == likeliest[:, :-1])
        return accepted, jnp.take_along_axis(likeliest, accepted[:, None], axis=1)[:, 0]
    of_acceptance, of_next = jax.random.split(key)
    p = law(logits, sampling)
    if probabilities is None:
        probabilities = jax.nn.one_hot(drafted, p.shape[-1], dtype=p.dtype)
    chance = acceptance(p, probabilities, drafted)
    accepted = count_leading(jax.random.uniform(of_acceptance, chance.shape, chance.dtype) < chance)
    following = next_law(p, probabilities)
    of_row = jnp.take_along_axis(following, accepted[:, None, None], axis=1)[:, 0]
    return accepted, jax.random.categorical(of_next, jnp.log(of_row)).astype(jnp.int32)


def law(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """The law that `sample` draws from: [..., vocab] → probabilities, at a temperature above 0."""
    flat = logits.reshape(-1, logits.shape[-1])
    return jax.nn.softmax(filter_logits(flat, sampling), axis=-1).reshape(logits.shape)


def acceptance(p: jax.Array, q: jax.Array, drafted: jax.Array) -> jax.Array:
    """min(1, p(x) / q(x)) of every drafted token x: p [batch, γ + 1, vocab], q [batch, γ, vocab] →
    [batch, γ]."""
    of_target, of_draft = (
        jnp.take_along_axis(of, drafted[..., None], axis=-1)[..., 0] for of in (p[:, :-1], q)
    )
    return jnp.minimum(1.0, of_target / of_draft)


def next_law(p: jax.Array, q: jax.Array) -> jax.Array:
    """The law of the token after n that stayed, for every n [batch, γ + 1, vocab]: (p − q)₊,
    normalised, and p after all γ."""
    more = jnp.maximum(p[:, :-1] - q, 0.0)
    total = jnp.sum(more, axis=-1, keepdims=True)
    # Where p is q up to rounding, no token is refused.
    more = jnp.where(total > 0, more / jnp.where(total > 0, total, 1.0), p[:, :-1])
    return jnp.concatenate([more, p[:, -1:]], axis=1)


def count_leading(stays: jax.Array) -> jax.Array:
    """How many entries of each row are set before the first that is not: [batch, γ] → [batch]."""
    return jnp.sum(jnp.cumprod(stays, axis=1, dtype=jnp.int32), axis=1, dtype=jnp.int32)
