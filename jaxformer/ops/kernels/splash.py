"""Attention on TPU: JAX's splash kernel, which works on one block of queries and one of keys."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as library

from jaxformer.ops.attention import Visibility

LANES = 128  # of a vector register; blocks are multiples
LONGEST = 1024  # the longest block of queries
LONGEST_AT_ONCE = 512  # the longest part of a block of keys whose logits are held
SHORTEST_OF_WINDOW = 256  # the shortest block, however short the window
MOST_BYTES = 2**20  # of a block of keys and values; the backward pass has room for twice that
MOST_PARTS = 8  # of the queries' gradient


def obstacle(
    q: jax.Array | jax.ShapeDtypeStruct,
    v: jax.Array | jax.ShapeDtypeStruct,
    visibility: Visibility,
    logit_softcap: float | None,
) -> str | None:
    """Why it cannot serve; None if it can."""
    if visibility.sinks:
        return "splash does not support sinks"
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"it computes in float32, not in {q.dtype}"
    if q.shape[1] < LANES:
        return f"rows of {q.shape[1]} tokens are shorter than its smallest block, {LANES}"
    return None


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    sink_logit: jax.Array | None = None,
    *,
    visibility: Visibility,
    scale: float,
    logit_softcap: float | None = None,
    slopes: None = None,
    max_distance: None = None,
) -> jax.Array:
    """`ops.attention.attend` of whole rows to themselves, on one device; positions are not read.

    Key-value heads are not repeated: a query head finds its own. The context, and the sums that
    the gradient needs beside it, are named `attention` for rematerialisation policies.
    """
    length, heads = q.shape[1:3]
    padding = -length % LANES  # behind the row, as a document of its own

    def rows(x: jax.Array) -> jax.Array:
        """[batch, length, heads, d] → [batch, heads, padded, d]"""
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, padding), (0, 0)))

    bytes_per_token = (q.shape[-1] + v.shape[-1]) * q.dtype.itemsize
    kernel = library.make_splash_mha(
        library.MultiHeadMask([_mask(length + padding, visibility)] * heads),
        block_sizes=_blocks(length + padding, visibility.window, bytes_per_token),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=logit_softcap,
        residual_checkpoint_name="attention",
    )
    documents = jnp.pad(segment_ids, ((0, 0), (0, padding)), constant_values=-1)
    ids = library.SegmentIds(documents, documents)
    y = jax.vmap(partial(kernel, sinks=sink_logit))(rows(q * scale), rows(k), rows(v), ids)
    return y[:, :, :length].swapaxes(1, 2)


def _mask(
    length: int, visibility: Visibility
) -> library.CausalMask | library.FullMask | library.LocalMask:
    shape, window = (length, length), visibility.window
    if window is None or window >= length:
        return library.CausalMask(shape) if visibility.is_causal else library.FullMask(shape)
    ahead = 0 if visibility.is_causal else window - 1
    return library.LocalMask(shape, (window - 1, ahead), offset=0)


def _blocks(length: int, window: int | None, bytes_per_token: int) -> library.BlockSizes:
    """Block sizes for rows of `length` tokens, with `bytes_per_token` of keys and values per head.

    A block on the edge of what is visible is computed whole, so large ones waste products, and
    small ones waste time between blocks. The fused backward pass takes five products, not seven,
    but leaves a part of the queries' gradient per block of keys, to be added up: its blocks are
    larger, and it is not used for rows of so many blocks that the parts would fill the memory.
    """
    longest = longest_backward = min(LONGEST, max(window or length, SHORTEST_OF_WINDOW))
    if window is None:
        longest_backward = max(LONGEST, length // 4)
    fits = MOST_BYTES // bytes_per_token
    block = _divisor(length, min(fits, longest))
    keys = _divisor(length, min(2 * fits, longest_backward))
    fused = length // keys <= MOST_PARTS
    return library.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=_divisor(block, LONGEST_AT_ONCE),
        block_q_dkv=block,
        block_kv_dkv=keys if fused else block,
        block_kv_dkv_compute=_divisor(keys if fused else block, LONGEST_AT_ONCE),
        block_q_dq=None if fused else block,
        block_kv_dq=None if fused else block,
        use_fused_bwd_kernel=fused,
    )


def _divisor(length: int, most: int) -> int:
    """The largest multiple of `LANES` up to `most` that divides `length`, itself a multiple."""
    return next(n for n in range(most - most % LANES, 0, -LANES) if length % n == 0)
