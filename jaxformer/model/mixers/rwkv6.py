"""RWKV-6's time mixing, Finch: a memory with a decay per channel, of which each token also sees
itself through a bonus (Peng et al., 2024, arXiv:2404.05892)."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from pydantic import Field, PositiveInt

from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.mixers.matrix_memory import MemorySizes
from jaxformer.model.norms import layer_normalize
from jaxformer.model.positions import PositionsUnion
from jaxformer.model.projections import Projection
from jaxformer.model.rows import RowInfo
from jaxformer.model.short_convolution import ConvolutionCache
from jaxformer.model.token_shift import DEPTH, mix_init, token_before
from jaxformer.ops.decay import State
from jaxformer.ops.decayed_outer_product import past_outer_product

EPSILON = 64e-5  # of the norm of each head's output
MIXED = ("decay", "key", "value", "receptance", "gate")


class RWKV6Config(MixerConfig):
    kind: Literal["rwkv6"] = "rwkv6"
    head_dim: PositiveInt = Field(
        64, description="features per head; there are d_model / head_dim heads"
    )
    mix_rank: PositiveInt = Field(
        32, description="the rank of the projections to how much is taken of the token before"
    )
    decay_rank: PositiveInt = Field(64, description="the rank of the projection to the decay")

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        if d_model % self.head_dim:
            raise ValueError(
                f"d_model {d_model} is not divisible by head_dim {self.head_dim}; change one"
            )

    def sizes(self, d_model: int) -> MemorySizes:
        return MemorySizes(d_model // self.head_dim, self.head_dim, self.head_dim)


@struct.dataclass
class RWKV6Cache:
    memory: State
    shift: ConvolutionCache  # the last token


class RWKV6(Mixer):
    """S_t = Diag(w_t) S_{t−1} + k_t v_tᵀ,  o_t = (S_{t−1} + Diag(u) k_t v_tᵀ)ᵀ r_t,

    where each of r, k, v, w and g sees x_t + (μ + A₂ tanh(A₁ z_t)) ⊙ (x_{t−1} − x_t), with its own
    μ, A₁ and A₂, and z_t = x_t + μ_z ⊙ (x_{t−1} − x_t):

        r, k, v = W x,  w = exp(−exp(ω + D₂ tanh(D₁ x))),  g = silu(W x),
        y = W_o (g ⊙ GroupNorm(o)).

    Weights start as in the authors' code, so that r, k, v and g ignore `dims.init`.
    """

    config: RWKV6Config

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: RWKV6Cache | None = None
    ) -> tuple[jax.Array, RWKV6Cache | None]:
        config, sizes, d_model = self.config, self._sizes, self.dims.d_model
        heads, size, wide = sizes.heads, sizes.key, sizes.wide(x.dtype)
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache
        before, shift = token_before(x, rows.segment_ids, start.shift)
        zeros, small = nn.initializers.zeros, _uniform(0.01)

        def share(name: str, power: float, extra: float = 0.0) -> jax.Array:
            """μ [d_model]."""
            init = nn.with_logical_partitioning(mix_init(power, extra), ("vector",))
            return self.param(f"mix_{name}", init, (d_model,), jnp.float32).astype(x.dtype)

        ranks = config.mix_rank * len(MIXED)
        into = Projection((ranks,), ("d_model", "rank"), zeros, name="mix_in")
        low = jnp.tanh(into(x + share("all", 1.0) * (before - x)))
        parts = jnp.split(low, len(MIXED), axis=-1)  # [batch, length, mix_rank] each
        low_of = dict(zip(MIXED, parts, strict=True))

        def mixed(name: str, power: float, extra: float = 0.0) -> jax.Array:
            """What `name` sees, [batch, length, d_model]."""
            names = ("rank", "d_model")
            more = Projection((d_model,), names, small, name=f"mix_{name}_out")(low_of[name])
            return x + (share(name, power, extra) + more) * (before - x)

        def projected(name: str, gain: float, inputs: jax.Array) -> jax.Array:
            """[batch, length, heads, head_dim]."""
            names = ("d_model", "heads", "head_dim")
            return Projection((heads, size), names, _orthogonal(gain), name=name)(inputs)

        def per_head(name: str, init: nn.initializers.Initializer) -> jax.Array:
            names = nn.with_logical_partitioning(init, ("heads", "head_dim"))
            return self.param(name, names, (heads, size), jnp.float32).astype(wide)

        r = projected("receptance", 1.0, mixed("receptance", 0.5)).astype(wide)
        k = projected("key", 0.1, mixed("key", 1.0)).astype(wide)
        v = projected("value", 1.0, mixed("value", 1.0, 0.3)).astype(wide)
        gate = nn.silu(projected("gate", 0.1, mixed("gate", 0.5)))
        into = Projection((config.decay_rank,), ("d_model", "rank"), zeros, name="decay_in")
        out_of = Projection((heads, size), ("rank", "heads", "head_dim"), small, name="decay_out")
        decay = out_of(jnp.tanh(into(mixed("decay", 1.0))))
        log_decay = -jnp.exp(per_head("decay_bias", _decay_bias_init) + decay.astype(wide))

        o, memory = past_outer_product(r, k, v, log_decay, rows.segment_ids, start.memory)
        o += jnp.sum(r * per_head("bonus", _bonus_init) * k, axis=-1, keepdims=True) * v
        scale = per_head("norm_scale", nn.initializers.constant(DEPTH**0.7))
        o = layer_normalize(o, EPSILON) * scale + per_head("norm_bias", zeros)
        y = Projection(
            (d_model,),
            ("heads", "head_dim", "d_model"),
            self.dims.init.output_matrix(d_model, self.dims.num_layers),
            name="output",
        )(o.astype(x.dtype) * gate)
        return y, None if cache is None else RWKV6Cache(memory, shift)

    @property
    def _sizes(self) -> MemorySizes:
        return self.config.sizes(self.dims.d_model)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> RWKV6Cache:
        shift = ConvolutionCache.empty(batch, 2, self.dims.d_model, dtype)
        return RWKV6Cache(self._sizes.empty(batch, dtype), shift)

    def flops(self, length: int) -> float:
        config, d_model = self.config, self.dims.d_model
        low_rank = 2 * (len(MIXED) * config.mix_rank + config.decay_rank)
        return 2.0 * d_model * (5 * d_model + low_rank) + self._sizes.flops(length)

    def cache_bytes(self, length: int) -> int:
        dtype = self.dims.dtype
        return self._sizes.bytes(dtype) + ConvolutionCache.bytes(2, self.dims.d_model, dtype)


def _uniform(bound: float) -> nn.initializers.Initializer:
    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _orthogonal(gain: float) -> nn.initializers.Initializer:
    """gain times a matrix [d_model, heads · head_dim] of orthogonal columns, as [d_model, heads,
    head_dim]."""
    matrix = nn.initializers.orthogonal(gain)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return matrix(key, (shape[0], math.prod(shape[1:])), dtype).reshape(shape)

    return init


def _decay_bias_init(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """−6 + 5 (i/(d − 1))^{0.7 + 1.3 depth} over the d channels of all heads."""
    ramp = jnp.linspace(0.0, 1.0, math.prod(shape), dtype=dtype)
    return (-6 + 5 * ramp ** (0.7 + 1.3 * DEPTH)).reshape(shape)


def _bonus_init(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """depth · (1 − i/(d − 1)) + 0.1 ((i + 1) mod 3 − 1) over the d channels of all heads."""
    channels = math.prod(shape)
    zigzag = 0.1 * ((jnp.arange(channels, dtype=dtype) + 1) % 3 - 1)
    return (DEPTH * jnp.linspace(1.0, 0.0, channels, dtype=dtype) + zigzag).reshape(shape)
