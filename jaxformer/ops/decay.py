"""What recurrences with a decaying matrix state share: chunks, decays between tokens, the carry.

Letters: b batch, h heads, n chunks, t and s tokens of a chunk, K key size, V value size.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops import shards

# Up to this many tokens, decays between pairs are computed one by one, above it by halves.
SMALLEST_BLOCK = 4
# In float32, e^{3/4 REACH} is far from overflow, and e^x is not yet zero 27 below e^−REACH: what a
# pair loses there is less than its rounding.
REACH = 80.0


class State(NamedTuple):
    """The memory after some token, and the document that the token belongs to."""

    memory: jax.Array  # [batch, heads, K, V]
    segment: jax.Array  # [batch]


def by_chunk(x: jax.Array, size: int) -> jax.Array:
    """[batch, length, heads, ...] → [batch, heads, chunks, size, ...], zeros behind the end."""
    padding = -x.shape[1] % size
    x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(x.shape[0], -1, size, *x.shape[2:])
    return jnp.moveaxis(x, 3, 1)


def by_token(x: jax.Array, length: int) -> jax.Array:
    """[batch, heads, chunks, size, V] → [batch, length, heads, V], the inverse of `by_chunk`."""
    x = jnp.moveaxis(x, 1, 3)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def for_heads(x: jax.Array, heads: int) -> jax.Array:
    """[batch, groups, ...] → [batch, heads, ...], each group repeated for its heads."""
    return jnp.repeat(x, heads // x.shape[1], axis=1)


class Chunks(NamedTuple):
    """Which tokens of a chunk, and of the memory before it, belong together."""

    segments: jax.Array  # [batch, 1, chunks, size]
    before: jax.Array  # [batch, 1, chunks, 1]: the document of the memory before the chunk

    @classmethod
    def of(cls, segment_ids: jax.Array, size: int, before: jax.Array) -> "Chunks":
        """From segment ids [batch, length] and the state's document; the last id fills padding."""
        before = shards.from_before(segment_ids[:, -1], before)
        padding = -segment_ids.shape[1] % size
        padded = jnp.pad(segment_ids, [(0, 0), (0, padding)], mode="edge")
        segments = padded.reshape(padded.shape[0], 1, -1, size)
        last = jnp.concatenate([before[:, None, None], segments[:, :, :-1, -1]], axis=2)
        return cls(segments, last[..., None])

    def causal(self, *, strict: bool) -> jax.Array:
        """[batch, 1, chunks, t, s]: s is of t's document, and not after t (before it if strict)."""
        size = self.segments.shape[-1]
        near = jnp.tril(jnp.ones((size, size), bool), -1 if strict else 0)
        return near & (self.segments[..., :, None] == self.segments[..., None, :])

    def reads(self, x: jax.Array, log_total: jax.Array) -> jax.Array:
        """x as it reads the memory before a chunk: x_t e^{log_total_t}, 0 in other documents."""
        reached = (self.segments == self.before)[..., None]
        return jnp.where(reached, x * jnp.exp(log_total), 0.0)

    def writes(self, x: jax.Array, log_total: jax.Array) -> jax.Array:
        """What is left of x at the end of the chunk, zero in documents that end before it."""
        lasting = (self.segments == self.segments[..., -1:])[..., None]
        return jnp.where(lasting, x * jnp.exp(log_total[..., -1:, :] - log_total), 0.0)

    def decay(self, log_total: jax.Array) -> jax.Array:
        """[batch, heads, chunks, K or 1, 1]: the share of a chunk's initial memory that is left."""
        survives = (self.before == self.segments[..., -1:])[..., None]
        return jnp.where(survives, jnp.exp(log_total[..., -1:, :]), 0.0).swapaxes(-1, -2)


def running_total(logs: jax.Array) -> jax.Array:
    """Running sums over tokens [..., tokens, K]. On a CPU, `cumsum` adds every token's sum anew."""
    return jax.lax.associative_scan(jnp.add, logs, axis=logs.ndim - 2)


def exclusive(log_total: jax.Array) -> jax.Array:
    """The sums before every token, from those that include it."""
    return jnp.pad(log_total[..., :-1, :], [(0, 0)] * (log_total.ndim - 2) + [(1, 0), (0, 0)])


def decayed_products(
    x: jax.Array, y: jax.Array, log_x: jax.Array, log_y: jax.Array, *, strict: bool = False
) -> jax.Array:
    """Σ_K x_t y_s e^{log_x_t − log_y_s} for s ≤ t, or s < t if strict: [..., chunks, t, s]. Other
    entries are arbitrary: mask them with `where`.

    Args:
        x, y: [..., chunks, tokens, K]; with one decay per head, heads of x and y may serve several.
        log_x, log_y: [..., chunks, tokens, K or 1], falling sums, log_x_t ≤ log_y_s for all pairs
            that count.

    With one decay per head, all pairs are computed at once. With one per channel, what has decayed
    by less than e^REACH since the chunk began is one product of x and y, relative to that
    beginning. For the rest, if any, `exp` never gets a positive difference: a block of pairs is a
    product relative to its own middle (GLA's secondary chunks, arXiv:2312.06635 section 4.3, halved
    down to `SMALLEST_BLOCK` tokens). Every pair depends only on what was known at t, to the last
    bit.
    """
    if log_x.shape[-1] == 1:
        products = for_heads(x @ y.swapaxes(-1, -2), log_x.shape[1])
        return products * _pair_decays(log_x, log_y, strict)[..., 0]
    return _channel_products(x, y, log_x, log_y, strict)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _channel_products(
    x: jax.Array, y: jax.Array, log_x: jax.Array, log_y: jax.Array, strict: bool
) -> jax.Array:
    """`decayed_products` with one decay per channel. The gradient keeps only the arguments."""
    decay_x, decay_y, far = _from_the_beginning(log_x, log_y)
    near = (x * decay_x) @ (y * decay_y).swapaxes(-1, -2)

    def and_far(near: jax.Array, y: jax.Array) -> jax.Array:
        return near + _products_by_halves(x, jnp.where(far, y, 0.0), log_x, log_y, strict)

    return jax.lax.cond(jnp.any(far), and_far, lambda near, y: near, near, y)


def _channel_products_forward(*arguments: Any) -> tuple[jax.Array, tuple]:
    return _channel_products(*arguments), arguments[:4]


def _channel_products_backward(strict: bool, kept: tuple, gradient: jax.Array) -> tuple:
    """P = Σ_K x_t y_s e^{…} has ∂P/∂log_x = x ∂P/∂x and ∂P/∂log_y = −y ∂P/∂y."""
    x, y, log_x, log_y = kept
    decay_x, decay_y, far = _from_the_beginning(log_x, log_y)
    d_x = decay_x * (gradient @ (y * decay_y))
    d_y = decay_y * (gradient.swapaxes(-1, -2) @ (x * decay_x))

    def and_far(d_x: jax.Array, d_y: jax.Array) -> tuple[jax.Array, jax.Array]:
        def products(x: jax.Array, y: jax.Array) -> jax.Array:
            return _products_by_halves(x, y, log_x, log_y, strict)

        more_x, more_y = jax.vjp(products, x, jnp.where(far, y, 0.0))[1](gradient)
        return d_x + more_x, d_y + jnp.where(far, more_y, 0.0)

    d_x, d_y = jax.lax.cond(jnp.any(far), and_far, lambda *near: near, d_x, d_y)
    return d_x, d_y, x * d_x, -y * d_y


_channel_products.defvjp(_channel_products_forward, _channel_products_backward)


def _from_the_beginning(
    log_x: jax.Array, log_y: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Factors of e^{log_x_t − log_y_s}, and where y's is zero because too much has decayed."""
    beginning = jnp.maximum(log_x[..., :1, :], log_y[..., :1, :])
    far = beginning - log_y > REACH
    decay_x = jnp.exp(log_x - beginning + REACH / 4)
    decay_y = jnp.exp(jnp.where(far, -jnp.inf, beginning - log_y - REACH / 4))
    return decay_x, decay_y, far


def _products_by_halves(
    x: jax.Array, y: jax.Array, log_x: jax.Array, log_y: jax.Array, strict: bool
) -> jax.Array:
    size = x.shape[-2]
    if size <= SMALLEST_BLOCK or size % 2:
        return jnp.einsum("...tk,...sk,...tsk->...ts", x, y, _pair_decays(log_x, log_y, strict))
    # Halves join the axis of chunks: XLA on a CPU multiplies no arrays of more than seven axes.
    x, y, log_x, log_y = (_halves(a) for a in (x, y, log_x, log_y))
    within = _pairs(_products_by_halves(x, y, log_x, log_y, strict))
    x, y, log_x, log_y = (_pairs(a) for a in (x, y, log_x, log_y))  # [..., chunks, 2, half, K]
    middle = log_y[..., 0, -1:, :]
    later = x[..., 1, :, :] * jnp.exp(log_x[..., 1, :, :] - middle)
    earlier = y[..., 0, :, :] * jnp.exp(middle - log_y[..., 0, :, :])
    below = later @ earlier.swapaxes(-1, -2)
    return jnp.concatenate(
        [
            jnp.concatenate([within[..., 0, :, :], jnp.zeros_like(below)], axis=-1),
            jnp.concatenate([below, within[..., 1, :, :]], axis=-1),
        ],
        axis=-2,
    )


def _halves(x: jax.Array) -> jax.Array:
    """[..., chunks, tokens, K] → [..., 2 · chunks, tokens / 2, K]."""
    *axes, chunks, tokens, features = x.shape
    return x.reshape(*axes, 2 * chunks, tokens // 2, features)


def _pairs(x: jax.Array) -> jax.Array:
    """[..., 2 · chunks, half, any] → [..., chunks, 2, half, any]."""
    *axes, chunks, half, features = x.shape
    return x.reshape(*axes, chunks // 2, 2, half, features)


def _pair_decays(log_x: jax.Array, log_y: jax.Array, strict: bool) -> jax.Array:
    """e^{log_x_t − log_y_s} [..., t, s, K], and 1 where the difference may be positive."""
    size = log_x.shape[-2]
    near = jnp.tril(jnp.ones((size, size), bool), -1 if strict else 0)[..., None]
    return jnp.exp(jnp.where(near, log_x[..., :, None, :] - log_y[..., None, :, :], 0.0))


def carry(memory: jax.Array, decay: jax.Array, written: jax.Array) -> tuple[jax.Array, jax.Array]:
    """S_{n+1} = decay_n ⊙ S_n + written_n over the chunks.

    Args:
        memory: S_0 [batch, heads, K, V], before the first shard where there are several.
        decay: [batch, heads, chunks, K or 1, 1].
        written: [batch, heads, chunks, K, V].

    Returns:
        (S before every chunk [batch, heads, chunks, K, V], S after the last).
    """

    def advance(memory: jax.Array, chunk: tuple) -> tuple[jax.Array, jax.Array]:
        decay, written = chunk
        return decay * memory + written, memory

    chunks = tuple(jnp.moveaxis(x, 2, 0) for x in (decay, written))
    last, before = jax.lax.scan(advance, memory_before(memory, decay, written), chunks)
    return jnp.moveaxis(before, 0, 2), last


def memory_before(
    memory: jax.Array, decay: jax.Array, written: jax.Array, moved: jax.Array | None = None
) -> jax.Array:
    """The memory before this shard of S_{n+1} = decay_n ⊙ S_n + moved_n S_n + written_n.

    Args:
        memory: that before the first shard.
        decay, written: as in `carry`.
        moved: [batch, heads, chunks, K, K], or None for zero.
    """
    if shards.count() == 1:
        return memory
    chunks = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), (decay, written, moved))
    return shards.state_before(memory, _through, _joined(*chunks))


def _joined(
    decay: jax.Array, written: jax.Array, moved: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """All chunks as one step: (T, W) with S ← T S + W, or T ⊙ S for T [batch, heads, K or 1, 1]."""

    def join(whole: tuple, chunk: tuple) -> tuple[tuple, None]:
        (transition, given), (decay, written, moved) = whole, chunk
        if moved is None:
            return (decay * transition, decay * given + written), None
        transition = decay * transition + moved @ transition
        return (transition, decay * given + moved @ given + written), None

    same = jnp.ones_like(decay[0])
    if moved is not None:
        same = jnp.broadcast_to(jnp.eye(moved.shape[-1], dtype=moved.dtype), moved.shape[1:])
    return jax.lax.scan(join, (same, jnp.zeros_like(written[0])), (decay, written, moved))[0]


def _through(memory: jax.Array, step: tuple[jax.Array, jax.Array]) -> jax.Array:
    transition, given = step
    diagonal = transition.shape[-1] == 1
    return (transition * memory if diagonal else transition @ memory) + given


def drop_other_documents(state: State, segment: jax.Array) -> jax.Array:
    """The memory where it belongs to document `segment` [batch], else zero."""
    return jnp.where((state.segment == segment)[:, None, None, None], state.memory, 0.0)
