"""Random masks over time and frequency: SpecAugment (Park et al., 2019, arXiv:1904.08779)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Stretches(NamedTuple):
    """Stretches of places, both arrays [..., count], integers."""

    starts: jax.Array
    widths: jax.Array


def drawn_stretches(key: jax.Array, count: int, widest: jax.Array, lengths: jax.Array) -> Stretches:
    """`count` stretches within so many places each, which may overlap.

    Args:
        widest: integers [...]; a stretch is from 0 to so many places wide, all equally likely.
        lengths: integers [...], of places; all that a stretch can lie in are equally likely.
    """
    of_width, of_start = jax.random.split(key)
    shape = (*lengths.shape, count)
    widest, lengths = widest[..., None], lengths[..., None]
    widths = _whole_number(of_width, shape, jnp.minimum(widest, lengths))
    return Stretches(_whole_number(of_start, shape, lengths - widths), widths)


def outside(places: jax.Array, stretches: Stretches) -> jax.Array:
    """[...], whether each place is in none of its stretches [..., count]."""
    from_start = places[..., None] - stretches.starts
    return ~jnp.any((from_start >= 0) & (from_start < stretches.widths), axis=-1)


def _whole_number(key: jax.Array, shape: tuple[int, ...], most: jax.Array) -> jax.Array:
    """From 0 to `most`, all equally likely."""
    drawn = jax.random.uniform(key, shape, jnp.float32) * (most + 1)
    return jnp.minimum(drawn.astype(jnp.int32), most)
