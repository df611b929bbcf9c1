"""A Llama-style train step written by hand, as fast as we could make it on a CPU.

The yardstick of `benchmarks/step.py`: no framework, no configuration, two-dimensional activations,
attention in blocks of queries that skip the masked half, every layer unrolled, AdamW with clipping
in one pass. It computes what the project's step computes, on rows that hold one document each.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Sizes(NamedTuple):
    """The model of the benchmark."""

    layers: int = 6
    d_model: int = 256
    heads: int = 4
    d_hidden: int = 688
    vocab: int = 4096
    length: int = 256
    batch: int = 16
    block: int = 64


def init(key: jax.Array, sizes: Sizes) -> dict:
    """Parameters, with one dictionary per layer."""
    d, f, v = sizes.d_model, sizes.d_hidden, sizes.vocab
    keys = iter(jax.random.split(key, 7 * sizes.layers + 2))

    def matrix(rows: int, columns: int) -> jax.Array:
        return 0.02 * jax.random.normal(next(keys), (rows, columns))

    layers = [
        {
            "mixer_norm": jnp.ones(d),
            "q": matrix(d, d),
            "k": matrix(d, d),
            "v": matrix(d, d),
            "o": matrix(d, d),
            "ffn_norm": jnp.ones(d),
            "gate": matrix(d, f),
            "in": matrix(d, f),
            "out": matrix(f, d),
        }
        for _ in range(sizes.layers)
    ]
    return {
        "embedding": matrix(v, d),
        "layers": layers,
        "norm": jnp.ones(d),
        "head": matrix(d, v),
    }


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def _attention(q: jax.Array, k: jax.Array, v: jax.Array, block: int) -> jax.Array:
    length, head_dim = q.shape[1], q.shape[3]
    q = q * head_dim**-0.5
    outputs = []
    for start in range(0, length, block):
        stop = start + block
        logits = jnp.einsum("bqhd,bshd->bhqs", q[:, start:stop], k[:, :stop])
        visible = np.arange(start, stop)[:, None] >= np.arange(stop)
        weights = jax.nn.softmax(jnp.where(visible, logits, -1e30), axis=-1)
        outputs.append(jnp.einsum("bhqs,bshd->bqhd", weights, v[:, :stop]))
    return jnp.concatenate(outputs, axis=1)


def loss(params: dict, inputs: jax.Array, targets: jax.Array, sizes: Sizes) -> jax.Array:
    """Mean cross-entropy of [batch, length] tokens."""
    batch, length = inputs.shape
    d, head_dim = sizes.d_model, sizes.d_model // sizes.heads
    frequencies = 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)
    phases = np.arange(length)[:, None] * frequencies
    cos, sin = (f(phases).astype(np.float32)[:, None] for f in (np.cos, np.sin))

    def rope(x: jax.Array) -> jax.Array:
        first, second = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    x = params["embedding"][inputs.reshape(-1)]  # [batch · length, d_model]
    for layer in params["layers"]:
        y = _norm(x, layer["mixer_norm"])
        q, k, v = ((y @ layer[n]).reshape(batch, length, sizes.heads, head_dim) for n in "qkv")
        y = _attention(rope(q), rope(k), v, sizes.block)
        x = x + y.reshape(-1, d) @ layer["o"]
        y = _norm(x, layer["ffn_norm"])
        x = x + (jax.nn.silu(y @ layer["gate"]) * (y @ layer["in"])) @ layer["out"]
    logits = _norm(x, params["norm"]) @ params["head"]
    log_z = jax.nn.logsumexp(logits, axis=-1)
    at_target = jnp.take_along_axis(logits, targets.reshape(-1, 1), axis=-1)[:, 0]
    return jnp.mean(log_z - at_target)


def train_step(
    params: dict, moments: tuple[dict, dict], step: jax.Array, inputs: jax.Array, targets: jax.Array
) -> tuple[dict, tuple[dict, dict], jax.Array]:
    """A step of `adamw` on the loss of a batch."""
    value, gradients = jax.value_and_grad(loss)(params, inputs, targets, Sizes())
    return (*adamw(params, moments, step, gradients), value)


def adamw(
    params: dict, moments: tuple[dict, dict], step: jax.Array, gradients: dict
) -> tuple[dict, tuple[dict, dict]]:
    """AdamW (0.9, 0.95, ε 1e-8, decay 0.1 of matrices) at 1e-3, gradients clipped to norm 1."""
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(gradients)))
    clip = jnp.minimum(1.0, 1.0 / norm)
    count = step + 1
    first_scale, second_scale = 1 / (1 - 0.9**count), 1 / (1 - 0.95**count)

    def update(p: jax.Array, m: jax.Array, n: jax.Array, g: jax.Array) -> tuple:
        g = g * clip
        m, n = 0.9 * m + 0.1 * g, 0.95 * n + 0.05 * g * g
        direction = m * first_scale / (jnp.sqrt(n * second_scale) + 1e-8)
        return p - 1e-3 * (direction + (0.1 * p if p.ndim > 1 else 0.0)), m, n

    updated = jax.tree.map(update, params, *moments, gradients)
    params, first, second = jax.tree.transpose(
        jax.tree.structure(params), jax.tree.structure((0, 0, 0)), updated
    )
    return params, (first, second)
