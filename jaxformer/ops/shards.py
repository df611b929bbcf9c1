"""What a shard of a sequence that is split over devices needs from the shards before it.

Inside `jax.shard_map` over the axis `context`, arrays [batch, length, ...] are one device's piece
of longer ones, in the order of the devices. Everywhere else there is one shard.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

AXIS = "context"

State = TypeVar("State")
Summary = TypeVar("Summary")


def count() -> int:
    """How many shards there are; the functions here may be called for one, too."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[AXIS] if AXIS in mesh.manual_axes else 1


def total(x: jax.Array) -> jax.Array:
    """The sum of x over the shards. It has no gradient."""
    x = jax.lax.stop_gradient(x)
    return x if count() == 1 else jax.lax.psum(x, AXIS)


def from_before(x: State, first: State) -> State:
    """The x of the shard before this one; the first shard gets `first`."""
    if count() == 1:
        return first
    steps = [(shard, shard + 1) for shard in range(count() - 1)]
    moved = jax.lax.ppermute(x, AXIS, steps)
    is_first = jax.lax.axis_index(AXIS) == 0
    return jax.tree.map(lambda a, b: jnp.where(is_first, a, b), first, moved)


def tokens_before(x: jax.Array, first: jax.Array) -> jax.Array:
    """The last n tokens of the shard before this one; the first shard gets `first` [batch, n, ...].

    Raises:
        ValueError: a shard is shorter than that.
    """
    needed, length = first.shape[1], x.shape[1]
    if count() > 1 and length < needed:
        raise ValueError(
            f"a shard of {length} tokens is shorter than the {needed} that the next one looks back "
            f"on; use fewer shards (mesh.context {count()})"
        )
    return from_before(x[:, max(0, length - needed) :], first)


def reverse(x: jax.Array) -> jax.Array:
    """This shard's piece of whole rows [batch, length, ...], each last token first."""
    x = jnp.flip(x, axis=1)
    if count() == 1:
        return x
    last = count() - 1
    return jax.lax.ppermute(x, AXIS, [(shard, last - shard) for shard in range(count())])


def documents_before(segment_ids: jax.Array, first: jax.Array) -> jax.Array:
    """The document of the token before each: [batch, length]; `first` [batch] before all."""
    first = from_before(segment_ids[:, -1], first)
    return jnp.concatenate([first[:, None], segment_ids[:, :-1]], axis=1)


def whole(x: jax.Array) -> jax.Array:
    """Whole rows [batch, length, ...], of which x is this shard's piece."""
    return x if count() == 1 else jax.lax.all_gather(x, AXIS, axis=1, tiled=True)


def of_whole(function: Callable[..., jax.Array], *pieces: jax.Array) -> jax.Array:
    """This shard's piece of the result of `function` on whole rows [batch, length].

    Every device gathers the rows, so there should be few numbers per token.
    """
    if count() == 1:
        return function(*pieces)
    rows = [whole(piece) for piece in pieces]
    length = pieces[0].shape[1]
    start = jax.lax.axis_index(AXIS) * length
    return jax.lax.dynamic_slice_in_dim(function(*rows), start, length, axis=1)


def state_before(
    first: State, advance: Callable[[State, Summary], State], summary: Summary
) -> State:
    """The state before this shard; `first` is the state before all shards.

    Args:
        advance: (state before a shard, the shard's summary) → state after it. All devices exchange
            their summaries and run it over the shards.
    """
    if count() == 1:
        return first
    summaries = jax.lax.all_gather(summary, AXIS)
    _, states = jax.lax.scan(lambda s, shard: (advance(s, shard), s), first, summaries)
    return jax.tree.map(lambda x: x[jax.lax.axis_index(AXIS)], states)


def one_after_another(first: State, advance: Callable[[State], State]) -> State:
    """The state before this shard, where only `advance` itself can compute the next one: shards
    take turns, which takes as long as if one device had them all."""
    if count() == 1:
        return first

    @jax.checkpoint
    def turn(state: State, _: None) -> tuple[State, None]:
        return from_before(advance(state), first), None

    return jax.lax.scan(turn, first, length=count() - 1)[0]
