"""What the definitions of mixers are written with: one document, a token at a time, no batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.model.dims import Grid
from jaxformer.model.mixers.base import MixerConfig
from jaxformer.model.positions import AxialRoPEConfig, PositionsUnion, RoPEConfig

# definition(params, x [length, d_model], config, scheme) → y, for one document alone
Definition = Callable[[dict, jax.Array, Any, PositionsUnion], jax.Array]


class Case(NamedTuple):
    config: MixerConfig
    scheme: PositionsUnion
    definition: Definition
    wide: MixerConfig | None = None  # where FLOPs are counted, at width 256, if not `config`
    is_causal: bool = True

    @property
    def on_grid(self) -> bool:
        """Whether its rows are pictures, as `PICTURE` lies."""
        return self.config.needs_grid or isinstance(self.scheme, AxialRoPEConfig)


PICTURE = Grid(height=2, width=3, before=1)


def compiled(definition: Definition) -> Definition:
    """For definitions that others are made of, which call it more than once."""
    return jax.jit(definition, static_argnums=(2, 3))


ROPE = RoPEConfig(base=100.0)


def heads_of(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [length, d_model] through a kernel [d_model, heads, head_dim]."""
    return jnp.einsum("ld,dhf->lhf", x, kernel)


def rms(x: jax.Array, scale: Any = 1.0, eps: float = 1e-6) -> jax.Array:
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + eps) * scale


def unit(x: jax.Array) -> jax.Array:
    return x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-6)


def silu(x: jax.Array) -> jax.Array:
    return x / (1 + jnp.exp(-x))


def sigmoid(x: jax.Array) -> jax.Array:
    return 1 / (1 + jnp.exp(-x))


def softplus(x: jax.Array) -> jax.Array:
    return jnp.log(1 + jnp.exp(x))


def convolve(params: dict, x: jax.Array) -> jax.Array:
    """Causal, one weight a channel and step back: x [length, channels]."""
    kernel = params["kernel"]
    rows = [
        sum(kernel[back] * x[t - back] for back in range(min(t + 1, len(kernel))))
        for t in range(len(x))
    ]
    return jnp.stack(rows) + params.get("bias", 0.0)


def convolved_heads(params: dict, x: jax.Array) -> list[jax.Array]:
    """silu(conv(W x)) as [length, ...] of the query, key and value kernels [d_model, ...]."""
    kernels = [params[name]["kernel"] for name in ("query", "key", "value")]
    projected = [jnp.tensordot(x, kernel, 1) for kernel in kernels]
    mixed = silu(convolve(params["conv"], jnp.hstack([p.reshape(len(x), -1) for p in projected])))
    parts = []
    for p in projected:
        size = p[0].size
        parts.append(mixed[:, :size].reshape(p.shape))
        mixed = mixed[:, size:]
    return parts


def rotate(x: jax.Array, scheme: RoPEConfig) -> jax.Array:
    """x [length, heads, head_dim], all of it turned, as complex numbers."""
    half = x.shape[-1] // 2
    angles = jnp.outer(jnp.arange(len(x)), scheme.base ** (-jnp.arange(half) / half))
    turned = (x[..., :half] + 1j * x[..., half:]) * jnp.exp(1j * angles)[:, None]
    return jnp.concatenate([turned.real, turned.imag], axis=-1)


def gated_output(params: dict, o: jax.Array, x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """o [length, heads, head_dim] through norm, gate and output matrix."""
    y = rms(o, params.get("scale", 1.0), eps) * silu(heads_of(x, params["gate"]["kernel"]))
    return jnp.einsum("lhv,hvd->ld", y, params["output"]["kernel"])
