"""A bias on attention's logits by how far a key is from its query, one per head and bucket of
distances (T5: Raffel et al., 2020, arXiv:1910.10683, section 2.1).

With n buckets for one side of a query, e = ⌊n / 2⌋ and the longest distance D, the bucket of a
distance d is d for d < e, and min(n − 1, e + ⌊(n − e) · ln(d / e) / ln(D / e)⌋) beyond. A causal
model has one side, in which a key ahead of its query is at distance 0. In any other, the first half
of all buckets is for keys up to the query, the second for those ahead of it.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np


def bucket_starts(count: int, max_distance: int) -> np.ndarray:
    """The shortest distance of each of `count` buckets but the first: [count − 1]."""
    exact = count // 2
    powers = np.arange(1, count - exact) / (count - exact)
    # A start that is whole is not rounded up because of its rounding.
    longer = np.ceil(np.round(exact * (max_distance / exact) ** powers, 9))
    return np.concatenate([np.arange(1, exact + 1), longer]).astype(np.int32)


def buckets(
    queries: jax.Array, keys: jax.Array, count: int, max_distance: int, is_causal: bool
) -> jax.Array:
    """The bucket of every key for every query, of `count` altogether: positions [batch, q] and
    [batch, s] → int32 [batch, q, s]."""

    def of_side(distance: jax.Array, count: int) -> jax.Array:
        starts = jnp.asarray(bucket_starts(count, max_distance))
        return jnp.searchsorted(starts, distance, side="right", method="compare_all")

    behind = queries[:, :, None] - keys[:, None, :]
    if is_causal:
        return of_side(jnp.maximum(behind, 0), count)
    half = count // 2
    return of_side(jnp.abs(behind), half) + jnp.where(behind < 0, half, 0)


# What a gradient needs is found again: it is larger than the logits where buckets outnumber heads.
@partial(jax.checkpoint, static_argnums=(3, 4))
def biases(
    table: jax.Array, queries: jax.Array, keys: jax.Array, max_distance: int, is_causal: bool
) -> jax.Array:
    """What is added to the logits of every head.

    Args:
        table: [batch, heads, buckets].
        queries, keys: positions in the document, [batch, q] and [batch, s].

    Returns:
        [batch, heads, q, s], in the table's type.
    """
    count = table.shape[-1]
    found = buckets(queries, keys, count, max_distance, is_causal)
    # A product, because a TPU looks up slowly, and its transpose is no scatter.
    one_hot = jax.nn.one_hot(found, count, dtype=table.dtype)
    return jnp.einsum("bqsn,bhn->bhqs", one_hot, table, precision="highest")
