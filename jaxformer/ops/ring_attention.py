"""Attention over a sequence that is split over devices: keys and values pass around a ring.

Liu et al., 2023, arXiv:2310.01889. Of the 2n half shards of a sequence on n devices, device i has
the queries and keys of halves i and 2n − 1 − i, so that all have equal work (Brandon et al., 2023,
arXiv:2311.09431, deal out single tokens instead).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops import shards
from jaxformer.ops.attention import LogForget, Order, Tokens, masked_logits

# Arrays in this file hold both halves of a device, the earlier first: [2, batch, half, ...].


class Keys(NamedTuple):
    """What passes around the ring."""

    k: jax.Array
    v: jax.Array
    tokens: Tokens
    log_forget: jax.Array | None  # [2, batch, half, heads]


class Mixed(NamedTuple):
    """The result of attention to some of the keys."""

    o: jax.Array  # [2, batch, half, heads, head_dim]
    log_sum: jax.Array  # [2, batch, half, heads]: of the exponentials of the logits


class Queries(NamedTuple):
    """What the gradient needs of queries."""

    q: jax.Array
    tokens: Tokens
    log_forget: jax.Array | None
    log_sum: jax.Array  # [2, batch, half, heads], over all keys
    d_o: jax.Array
    along: jax.Array  # [2, batch, half, heads]: o · d_o


def ring_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    given: Order | None = None,
    sink_logit: jax.Array | None = None,
    relative_bias: jax.Array | None = None,
    log_forget: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """`row_attention` of a shard's queries to the keys of all shards, inside `shard_map`.

    The softmax is accumulated as keys pass by, and the gradient sends them around once more: no
    device ever holds more than two shards of them.

    Raises:
        ValueError: a shard has an odd number of tokens.
    """
    length = q.shape[1]
    if length % 2:
        raise ValueError(
            f"a shard of {length} tokens cannot be halved; the sequence length must be divisible "
            f"by 2 × mesh.context = {2 * shards.count()}"
        )
    order = jax.lax.axis_index(shards.AXIS) * length + jnp.arange(length, dtype=jnp.int32)
    tokens = Tokens(jnp.broadcast_to(order, positions.shape), positions, segment_ids, given)
    q, k, v, tokens, log_forget = jax.tree.map(_deal, (q, k, v, tokens, log_forget))
    around = jax.custom_vjp(lambda *arguments: _forward(options, *arguments)[0])
    around.defvjp(partial(_forward, options), partial(_backward, options))
    return _collect(around(q, k, v, tokens, sink_logit, relative_bias, log_forget))


def _home(half: int) -> int:
    """The device that holds a half shard."""
    return min(half, 2 * shards.count() - 1 - half)


def _deal(x: jax.Array) -> jax.Array:
    """A device's tokens [batch, length, ...] → its two halves."""
    devices = range(shards.count())
    halves = jnp.split(x, 2, axis=1)
    even, odd = (
        jax.lax.ppermute(half, shards.AXIS, [(i, _home(2 * i + second)) for i in devices])
        for second, half in enumerate(halves)
    )
    earlier_is_even = jax.lax.axis_index(shards.AXIS) % 2 == 0
    return jnp.where(earlier_is_even, jnp.stack([even, odd]), jnp.stack([odd, even]))


def _collect(x: jax.Array) -> jax.Array:
    """Undoes `_deal`."""
    devices = range(shards.count())
    earlier_is_even = jax.lax.axis_index(shards.AXIS) % 2 == 0
    halves = jnp.where(earlier_is_even, x, x[::-1])
    return jnp.concatenate(
        [
            jax.lax.ppermute(half, shards.AXIS, [(_home(2 * i + second), i) for i in devices])
            for second, half in enumerate(halves)
        ],
        axis=1,
    )


def _to_next(x: Any) -> Any:
    count = shards.count()
    return jax.lax.ppermute(x, shards.AXIS, [(i, (i + 1) % count) for i in range(count)])


# Pairs (half of queries, half of keys) that meet in a turn where any query may see any key.
ALL = ((0, 0), (0, 1), (1, 0), (1, 1))
# Those of the device's own that meet before the first turn otherwise.
OWN = ((0, 0), (1, 0), (1, 1))


def _in_order(options: dict, tokens: Tokens) -> bool:
    """Whether queries see no keys behind them in the row."""
    return options["visibility"].is_causal and tokens.given is None


def _own(options: dict, tokens: Tokens) -> tuple[tuple, ...]:
    return OWN if _in_order(options, tokens) else ALL


def _meeting(options: dict, tokens: Tokens, turn: jax.Array) -> tuple[tuple, ...]:
    """Pairs that meet after `turn` turns: all queries see the earlier half of the keys of a device
    before; the later half of the queries sees all keys of a device behind."""
    if not _in_order(options, tokens):
        return ALL
    before = turn <= jax.lax.axis_index(shards.AXIS)
    same = jnp.where(before, 0, 1)
    return ((1, 0), (same, same))


def _forward(
    options: dict,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    tokens: Tokens,
    sink_logit: jax.Array | None,
    relative_bias: jax.Array | None,
    log_forget: jax.Array | None,
) -> tuple[jax.Array, tuple]:
    wide = jnp.promote_types(q.dtype, jnp.float32)
    alone = jnp.finfo(wide).min if sink_logit is None else sink_logit.astype(wide)
    options = options | {"relative_bias": relative_bias}

    def meet(mixed: Mixed, keys: Keys, pairs: tuple) -> Mixed:
        for query, key in pairs:
            queries = (q[query], _half(tokens, query), _half(log_forget, query))
            more = _attend(options, *queries, _half(keys, key))
            joined = _joined(_half(mixed, query), more)
            mixed = jax.tree.map(lambda x, y, i=query: x.at[i].set(y), mixed, joined)
        return mixed

    def turn(carried: tuple[Mixed, Keys], number: jax.Array) -> tuple[tuple[Mixed, Keys], None]:
        mixed, keys = carried
        keys = _to_next(keys)
        return (meet(mixed, keys, _meeting(options, tokens, number)), keys), None

    keys = Keys(k, v, tokens, log_forget)
    nothing = Mixed(
        jnp.zeros((*q.shape[:-1], v.shape[-1]), wide),
        jnp.broadcast_to(alone, q.shape[:-1]),
    )
    start = (meet(nothing, keys, _own(options, tokens)), keys)
    (mixed, _), _ = jax.lax.scan(turn, start, jnp.arange(1, shards.count()))
    o = mixed.o.astype(v.dtype)
    return o, (q, keys, o, mixed.log_sum, sink_logit, relative_bias)


def _backward(options: dict, kept: tuple, d_o: jax.Array) -> tuple:
    q, keys, o, log_sum, sink_logit, relative_bias = kept
    wide = log_sum.dtype
    along = jnp.sum(o.astype(wide) * d_o.astype(wide), axis=-1)
    own = Queries(q, keys.tokens, keys.log_forget, log_sum, d_o, along)

    def meet(d_own: tuple, keys: Keys, d_keys: tuple, pairs: tuple) -> tuple:
        d_queries, d_bias = d_own
        for query, key in pairs:
            rows = (_half(own, query), _half(keys, key))
            of_queries, of_bias, of_keys = _attend_gradient(options, relative_bias, *rows)
            d_queries = _added(d_queries, query, of_queries)
            d_bias = jax.tree.map(jnp.add, d_bias, of_bias)
            d_keys = _added(d_keys, key, of_keys)
        return (d_queries, d_bias), d_keys

    def turn(carried: tuple, number: jax.Array) -> tuple[tuple, None]:
        gradients, keys = carried
        keys, d_keys = _to_next((keys, gradients[1]))
        return (meet(gradients[0], keys, d_keys, _meeting(options, own.tokens, number)), keys), None

    learned = (((q, keys.log_forget), relative_bias), (keys.k, keys.v, keys.log_forget))
    d_own, d_keys = jax.tree.map(lambda x: jnp.zeros(x.shape, wide), learned)
    start = (meet(d_own, keys, d_keys, _own(options, own.tokens)), keys)
    ((d_own, d_keys), _), _ = jax.lax.scan(turn, start, jnp.arange(1, shards.count()))
    (d_q, d_forget_q), d_bias = d_own
    d_k, d_v, d_forget_k = _to_next(d_keys)  # home
    d_forget = jax.tree.map(jnp.add, d_forget_q, d_forget_k)
    d_sink = None
    if sink_logit is not None:  # the weight of a value of 0
        weights = jnp.exp(sink_logit.astype(wide) - log_sum)
        d_sink = -jnp.sum(weights * along, axis=(0, 1, 2)).astype(sink_logit.dtype)
    made = (d_q, d_k, d_v, d_bias, d_forget)
    given = (q, keys.k, keys.v, relative_bias, keys.log_forget)
    d_q, d_k, d_v, d_bias, d_forget = jax.tree.map(lambda d, x: d.astype(x.dtype), made, given)
    return d_q, d_k, d_v, None, d_sink, d_bias, d_forget


def _half(x: Any, index: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], x)


def _added(totals: Any, half: Any, more: Any) -> Any:
    return jax.tree.map(lambda x, y: x.at[half].add(y), totals, more)


def _attend(
    options: dict, q: jax.Array, queries: Tokens, log_forget: jax.Array | None, keys: Keys
) -> Mixed:
    """Attention of one half's queries to one half's keys."""
    sums = LogForget.of(log_forget, keys.log_forget)
    logits = masked_logits(q, keys.k, queries, keys.tokens, log_forget=sums, **options)
    log_sum = jax.nn.logsumexp(logits, axis=-1, keepdims=True)  # [batch, kv, group, q, 1]
    weights = jnp.exp(logits - log_sum).astype(keys.v.dtype)
    o = jnp.einsum("bkgqs,bskd->bqkgd", weights, keys.v, preferred_element_type=logits.dtype)
    return Mixed(o.reshape(*q.shape[:3], -1), _by_query(log_sum))


def _joined(one: Mixed, other: Mixed) -> Mixed:
    log_sum = jnp.logaddexp(one.log_sum, other.log_sum)
    first, second = (jnp.exp(part.log_sum - log_sum)[..., None] for part in (one, other))
    return Mixed(first * one.o + second * other.o, log_sum)


def _attend_gradient(
    options: dict, relative_bias: jax.Array | None, queries: Queries, keys: Keys
) -> tuple[tuple, jax.Array | None, tuple]:
    """Gradients of q and its c, of the bias, and of k, v and their c, where one half's queries met
    one half's keys."""

    def logits_of(queries_of: tuple, bias: jax.Array | None, keys_of: tuple) -> jax.Array:
        (q, own), (k, theirs) = queries_of, keys_of
        tokens, sums = (queries.tokens, keys.tokens), LogForget.of(own, theirs)
        return masked_logits(q, k, *tokens, relative_bias=bias, log_forget=sums, **options)

    of_queries, of_keys = (queries.q, queries.log_forget), (keys.k, keys.log_forget)
    logits, pull = jax.vjp(logits_of, of_queries, relative_bias, of_keys)
    weights = jnp.exp(logits - _by_head(queries.log_sum, logits))
    grouped = queries.d_o.reshape(*queries.d_o.shape[:2], *logits.shape[1:3], -1)
    d_v = jnp.einsum("bkgqs,bqkgd->bskd", weights.astype(queries.d_o.dtype), grouped)
    d_weights = jnp.einsum("bqkgd,bskd->bkgqs", grouped, keys.v)
    d_queries, d_bias, (d_k, d_forget) = pull(
        weights * (d_weights - _by_head(queries.along, logits))
    )
    return d_queries, d_bias, (d_k, d_v, d_forget)


def _by_query(x: jax.Array) -> jax.Array:
    """[batch, kv, group, q, 1] → [batch, q, heads]"""
    x = jnp.moveaxis(x[..., 0], 3, 1)
    return x.reshape(*x.shape[:2], -1)


def _by_head(x: jax.Array, logits: jax.Array) -> jax.Array:
    """The inverse of `_by_query`, for logits [batch, kv, group, q, s]."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], *logits.shape[1:3]), 1, 3)[..., None]
