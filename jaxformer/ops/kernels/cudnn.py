"""Attention on NVIDIA GPUs: cuDNN's, as `jax.nn.dot_product_attention` calls it."""

import jax
import jax.numpy as jnp

from jaxformer.ops.attention import Tokens, Visibility


def obstacle(
    q: jax.Array | jax.ShapeDtypeStruct,
    v: jax.Array | jax.ShapeDtypeStruct,
    visibility: Visibility,
    logit_softcap: float | None,
) -> str | None:
    """Why it cannot serve; None if it can."""
    length, head_dim = q.shape[1], q.shape[-1]
    if logit_softcap is not None:
        return "cuDNN does not support logit_softcap"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it takes bfloat16, not {q.dtype}"
    if v.shape[-1] != head_dim:
        return f"it takes values as wide as keys, not {v.shape[-1]} and {head_dim}"
    if length % 2:
        return f"it takes rows of even lengths, not {length}"
    capability = getattr(jax.local_devices()[0], "compute_capability", "none")
    widest = {"8": 128, "9": 256, "10": 128, "12": 128}.get(capability.partition(".")[0])
    if widest is None:
        return (
            f"it needs an NVIDIA GPU of compute capability 8.0 or more, and this has {capability}"
        )
    if head_dim > widest or head_dim % 8:
        return f"it takes a head_dim up to {widest} that is divisible by 8, not {head_dim}"
    return None


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    sink_logit: None = None,
    *,
    visibility: Visibility,
    scale: float,
    logit_softcap: None = None,
    slopes: None = None,
    max_distance: None = None,
) -> jax.Array:
    """`ops.attention.attend` of whole rows to themselves, on one device.

    Documents, windows and sinks enter as a bias [batch, 1, length, length] in q's type: cuDNN takes
    no window beside a bias.
    """
    tokens = Tokens(jnp.arange(q.shape[1], dtype=jnp.int32)[None], positions, segment_ids)
    visible = visibility.mask(tokens, tokens)[:, None]
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=visible,
        is_causal=visibility.is_causal,
        scale=scale,
        implementation="cudnn",
    )
