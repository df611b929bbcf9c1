"""Softmax attention of whole rows to themselves, as in training."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxformer.ops import shards
from jaxformer.ops.attention import LogForget, Order, Tokens, Visibility, attend
from jaxformer.ops.kernels.choice import attend_by, choose
from jaxformer.ops.ring_attention import ring_attention

# Queries are taken in blocks, and a block meets only the keys before its end, so that nearly half
# of the products are never made, or those within its window. More blocks would skip little more and
# compile longer.
SMALLEST_BLOCK = 64
MOST_BLOCKS = 16

NOWHERE = PartitionSpec(None, None)

OfTokens = TypeVar("OfTokens")  # any arrays [batch, length, ...]


def row_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    order: Order | None = None,
    *,
    visibility: Visibility,
    kernel: str = "xla",
    place: PartitionSpec = NOWHERE,
    sink_logit: jax.Array | None = None,
    relative_bias: jax.Array | None = None,
    log_forget: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """`attend` of whole rows to themselves: by a kernel, or in blocks of queries that skip the keys
    no query sees.

    For rows split over devices, a causal window that reaches no further than the previous shard
    fetches that shard's end; everything else is `ring_attention`.

    Args:
        order: what tokens see, if `visibility` alone does not say it.
        kernel: see `choose`.
        place: the mesh axes of rows and of key-value heads.
        sink_logit: see `attend`.
        relative_bias: see `masked_logits`.
        log_forget: [batch, length, heads], the c of all tokens, see `LogForget`.

    Raises:
        ValueError: `kernel` cannot serve.
    """
    options |= {"visibility": visibility}
    choice = choose(
        kernel, q, v, order=order, sink_logit=sink_logit, log_forget=log_forget, **options
    )
    if choice.name != "xla":
        rows = (q, k, v, positions, segment_ids, sink_logit)
        return attend_by(choice.name, *rows, place=place, **options)
    length, (window, sinks, is_causal, _) = q.shape[1], visibility
    earlier = 0  # keys before the first query
    if shards.count() > 1:
        if not is_causal or order is not None or window is None or window > length or sinks:
            cut = (q, k, v, positions, segment_ids, order, sink_logit, relative_bias, log_forget)
            return ring_attention(*cut, **options)
        earlier = window - 1
        extended = partial(_with_end_before, count=earlier, fill=0)
        k, v, positions, log_forget = jax.tree.map(extended, (k, v, positions, log_forget))
        segment_ids = _with_end_before(segment_ids, earlier, -1)
    in_row = jnp.arange(earlier + length, dtype=jnp.int32)[None]
    tokens = Tokens(in_row, positions, segment_ids, order)
    learned = {"sink_logit": sink_logit, "relative_bias": relative_bias}
    outputs = []
    for start, stop, q_block in in_blocks(q):
        start, stop = earlier + start, earlier + stop
        reach = (window or length) - 1
        first, last = max(0, start - reach), stop
        if order is not None:
            first, last = 0, length
        elif not is_causal:  # a sink, too, may be seen from before it
            last = min(length, stop + max(reach, sinks - 1))
        seen, places = _between((k, v, log_forget), first, last), _between(tokens, first, last)
        if first and sinks:
            earlier_sinks, where = _earlier_sinks(tokens, first, sinks)
            seen = jax.tree.map(partial(_behind, where), (k, v, log_forget), seen)
            places = jax.tree.map(lambda *pair: _join(pair), earlier_sinks, places)
        keys, values, of_keys = seen
        queries = _between(tokens, start, stop)
        sums = LogForget.of(_between(log_forget, start, stop), of_keys)
        rest = learned | options
        outputs.append(attend(q_block, keys, values, queries, places, log_forget=sums, **rest))
    return jnp.concatenate(outputs, axis=1) if len(outputs) > 1 else outputs[0]


def in_blocks(q: jax.Array) -> list[tuple[int, int, jax.Array]]:
    """Blocks of queries [batch, length, ...], each behind the places where it begins and ends."""
    length = q.shape[1]
    block = max(SMALLEST_BLOCK, -(-length // MOST_BLOCKS))
    stops = [*range(block, length, block), length]
    starts = [0, *stops[:-1]]
    # The gradient of a split is one concatenation, that of slices a sum of padded arrays.
    blocks = jax.lax.split(q, np.subtract(stops, starts).tolist(), axis=1)
    return list(zip(starts, stops, blocks, strict=True))


def prefill_attention(
    is_empty: jax.Array,
    of_cache: Callable[[], jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    order: Order | None = None,
    *,
    kernel: str,
    **options: Any,
) -> jax.Array:
    """`of_cache()`, attention of new tokens to a cache and themselves; if the cache was empty and
    a kernel can serve, the kernel computes it instead."""
    if choose(kernel, q, v, order=order, **options).name == "xla":
        return of_cache()
    rows = (q, k, v, positions, segment_ids)
    return jax.lax.cond(is_empty, lambda: row_attention(*rows, kernel=kernel, **options), of_cache)


def _with_end_before(x: jax.Array, count: int, fill: int) -> jax.Array:
    """x preceded by the last `count` tokens of the shard before, by `fill` in the first shard."""
    nothing = jnp.full((x.shape[0], count, *x.shape[2:]), fill, x.dtype)
    return jnp.concatenate([shards.tokens_before(x, nothing), x], axis=1)


def _between(tokens: OfTokens, start: int, stop: int) -> OfTokens:
    return jax.tree.map(lambda part: part[:, start:stop], tokens)


def _behind(where: jax.Array, array: jax.Array, near: jax.Array) -> jax.Array:
    """array [batch, length, ...] at `where` [batch, n], and `near` behind it."""
    return jnp.concatenate([_take(array, where), near], axis=1)


def _take(array: jax.Array, where: jax.Array) -> jax.Array:
    """array [batch, length, ...] at `where` [batch, n] → [batch, n, ...]."""
    return jax.vmap(lambda row, indices: row[indices])(array, where)


def _join(parts: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Concatenates along the length, after spreading [1, length] over the batch."""
    batch = max(part.shape[0] for part in parts)
    spread = [jnp.broadcast_to(part, (batch, part.shape[1])) for part in parts]
    return jnp.concatenate(spread, axis=1)


def _earlier_sinks(tokens: Tokens, first: int, count: int) -> tuple[Tokens, jax.Array]:
    """The sinks before token `first` of the document that continues there, and their
    indices [batch, count]. Only that document can have both sinks before and queries after."""
    document = tokens.segment_ids == tokens.segment_ids[:, first, None]
    # Positions may have gaps, so that they do not tell where the document begins.
    wanted = jnp.argmax(document, axis=1)[:, None] + jnp.arange(count, dtype=jnp.int32)
    before = wanted < first
    where = jnp.where(before, wanted, 0)
    segments = jnp.where(before, _take(tokens.segment_ids, where), -1)
    return Tokens(where, _take(tokens.positions, where), segments), where
