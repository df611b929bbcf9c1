"""Softmax attention, over the keys each query sees."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from contracts.definition import PICTURE, ROPE, Case, compiled

from jaxformer.model.mixers.attention import AttentionConfig
from jaxformer.model.positions import ALiBiConfig, AxialRoPEConfig, PositionsUnion, RoPEConfig


def attention(
    params: dict,
    x: jax.Array,
    config: AttentionConfig,
    scheme: PositionsUnion,
    is_causal: bool = True,
) -> jax.Array:
    """softmax over the keys each query sees, one query and one head at a time."""

    def project(name: str) -> jax.Array:
        kernel = params[name]["kernel"]
        return jnp.einsum("ld,dhf->lhf", x, kernel) + params[name].get("bias", 0.0)

    def unit(y: jax.Array, name: str) -> jax.Array:
        if not config.qk_norm:
            return y
        features = (-2, -1) if config.qk_norm == "width" else -1
        square = jnp.mean(y**2, features, keepdims=True) + config.qk_norm_eps
        scale = params[name]["scale"].reshape(-1, y.shape[-1])  # [1 or heads, head_dim]
        return y / jnp.sqrt(square) * scale

    def rotate(y: jax.Array) -> jax.Array:
        """Pairs as complex numbers, turned by e^{i · position · frequency}."""
        if isinstance(scheme, AxialRoPEConfig):
            half = y.shape[-1] // 2
            angles = jnp.stack([angles_in_picture(place, scheme, half) for place in range(len(y))])
        elif isinstance(scheme, RoPEConfig):
            half = int(y.shape[-1] * scheme.fraction) // 2
            angles = jnp.outer(jnp.arange(len(y)), scheme.base ** (-jnp.arange(half) / half))
        else:
            return y
        turned = (y[..., :half] + 1j * y[..., half : 2 * half]) * jnp.exp(1j * angles)[:, None]
        return jnp.concatenate([turned.real, turned.imag, y[..., 2 * half :]], axis=-1)

    q, k = rotate(unit(project("query"), "query_norm")), rotate(unit(project("key"), "key_norm"))
    v = project("value")
    group = config.num_heads // config.kv_heads
    scale = config.scale or 1 / math.sqrt(q.shape[-1])
    window = config.window or len(x)
    y = jnp.zeros_like(q)
    for t in range(len(x)):
        near = [s for s in range(len(x)) if abs(t - s) < window or s < config.sinks]
        seen = jnp.array([s for s in near if s <= t or not is_causal])
        for head in range(config.num_heads):
            logits = scale * k[seen, head // group] @ q[t, head]
            if config.logit_softcap:
                logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
            if isinstance(scheme, ALiBiConfig):
                logits -= 2.0 ** (-8 * (head + 1) / config.num_heads) * abs(t - seen)
            weights = jnp.exp(logits)
            total = weights.sum()
            if config.sink_logit:
                total += jnp.exp(params["sink_logit"][head])
            y = y.at[t, head].set(weights / total @ v[seen, head // group])
    if config.output_gate:
        y *= 1 / (1 + jnp.exp(-project("gate")))
    output = params["output"]
    return jnp.einsum("lhf,hfd->ld", y, output["kernel"]) + output.get("bias", 0.0)


def angles_in_picture(place: int, scheme: AxialRoPEConfig, half: int) -> jax.Array:
    """[half]: of the row, and of the column; none before the picture."""
    row, column = divmod(max(0, place - PICTURE.before), PICTURE.width)
    frequencies = scheme.base ** (-2 * jnp.arange(half // 2) / half)
    return jnp.concatenate([row * frequencies, column * frequencies])


full_attention = compiled(partial(attention, is_causal=False))


def _attention(scheme: PositionsUnion, **options: Any) -> Case:
    config = AttentionConfig(**({"num_heads": 2, "head_dim": 4} | options))
    wide = config.model_copy(update={"head_dim": 64, "window": config.window and 256})
    return Case(config, scheme, attention, wide)


def _encoder(scheme: PositionsUnion, **options: Any) -> Case:
    return _attention(scheme, **options)._replace(definition=full_attention, is_causal=False)


CASES = {
    "attention": _attention(ROPE),
    "attention_grouped": _attention(ROPE, num_heads=4, num_kv_heads=2, qk_norm=True),
    "attention_norm_of_all_heads": _attention(
        ROPE, num_heads=4, num_kv_heads=2, qk_norm="width", qk_norm_eps=0.1
    ),
    "attention_multi_query": _attention(ROPE, num_kv_heads=1, qkv_bias=True, output_bias=True),
    "attention_window": _attention(ALiBiConfig(), window=3, output_gate=True),
    "attention_sink_logit": _attention(
        ROPE, num_heads=4, num_kv_heads=2, window=3, sink_logit=True
    ),
    "attention_sinks": _attention(
        RoPEConfig(base=100.0, fraction=0.5), window=2, sinks=2, logit_softcap=1.5, scale=0.7
    ),
}

ENCODERS = {
    "encoder_attention": _encoder(ROPE, num_kv_heads=1, qkv_bias="no_key"),
    # Its sinks reach further than the window.
    "encoder_attention_window": _encoder(ALiBiConfig(), window=2, sinks=3),
    "encoder_attention_axial": _encoder(AxialRoPEConfig(base=10.0), num_heads=1, head_dim=8),
}
