"""RWKV-7's time mixing: a memory with separate keys to erase and to write (Peng et al., 2025,
arXiv:2503.14456)."""

import math
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from pydantic import Field, PositiveInt

from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.mixers.matrix_memory import MemorySizes
from jaxformer.model.norms import layer_normalize, unit_normalize
from jaxformer.model.positions import PositionsUnion
from jaxformer.model.projections import Projection
from jaxformer.model.rows import RowInfo
from jaxformer.model.short_convolution import ConvolutionCache
from jaxformer.model.token_shift import DEPTH, mix_init, token_before
from jaxformer.ops.decay import State
from jaxformer.ops.delta_rule import diagonal_plus_low_rank


class RWKV7Config(MixerConfig):
    """The ranks of the projections to decay, rate and gate follow from d_model."""

    kind: Literal["rwkv7"] = "rwkv7"
    head_dim: PositiveInt = Field(
        64, description="features per head; there are d_model / head_dim heads"
    )

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        if d_model % self.head_dim:
            raise ValueError(
                f"d_model {d_model} is not divisible by head_dim {self.head_dim}; change one"
            )

    def sizes(self, d_model: int) -> MemorySizes:
        return MemorySizes(d_model // self.head_dim, self.head_dim, self.head_dim)


@struct.dataclass
class RWKV7Cache:
    memory: State
    shift: ConvolutionCache  # the last token


class RWKV7(Mixer):
    """S_t = (Diag(w_t) − (a_t ⊙ κ̂_t) κ̂_tᵀ) S_{t−1} + k̃_t v_tᵀ,  o_t = S_tᵀ r_t,

    (the transpose of the paper's S), where each of r, w, k, v, a and g sees
    x_t + μ ⊙ (x_{t−1} − x_t), with its own μ:

        r, k, v = W x,  a = σ(a₀ + A₂ A₁ x),  w = exp(−e^{−1/2} σ(w₀ + B₂ tanh(B₁ x))),
        g = G₂ σ(G₁ x),  κ̂ = k ⊙ ξ of length 1 per head,  k̃ = k ⊙ (1 + (a − 1) ⊙ α),
        y = W_o (g ⊙ (GroupNorm(o) + (r · (ρ ⊙ k̃)) v)).

    The published mixing of v with the first layer's is left out: a mixer knows one layer. Weights
    start as in the authors' code, so that r, k and v ignore `dims.init`.
    """

    config: RWKV7Config

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: RWKV7Cache | None = None
    ) -> tuple[jax.Array, RWKV7Cache | None]:
        sizes, d_model = self._sizes, self.dims.d_model
        heads, size, wide = sizes.heads, sizes.key, sizes.wide(x.dtype)
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache
        before, shift = token_before(x, rows.segment_ids, start.shift)

        def mixed(name: str, power: float, extra: float = 0.0) -> jax.Array:
            init = nn.with_logical_partitioning(mix_init(power, extra), ("vector",))
            mix = self.param(f"mix_{name}", init, (d_model,), jnp.float32).astype(x.dtype)
            return x + mix * (before - x)

        def projected(name: str, bound: float, inputs: jax.Array) -> jax.Array:
            """[batch, length, heads, head_dim], from weights uniform in ±bound/√d_model."""
            init = nn.initializers.variance_scaling(
                bound**2 / 3, "fan_in", "uniform", in_axis=0, out_axis=(1, 2)
            )
            names = ("d_model", "heads", "head_dim")
            return Projection((heads, size), names, init, name=name)(inputs).astype(wide)

        def per_head(name: str, init: nn.initializers.Initializer) -> jax.Array:
            names = nn.with_logical_partitioning(init, ("heads", "head_dim"))
            return self.param(name, names, (heads, size), jnp.float32).astype(wide)

        ranks, zeros, ones = self._ranks, nn.initializers.zeros, nn.initializers.ones
        r = projected("receptance", 0.5, mixed("receptance", 0.2))
        k = projected("key", 0.05, mixed("key", 0.9, 0.4))
        v = projected("value", 0.5, mixed("value", 0.4, 0.6))
        decay = self._low_rank("decay", ranks["decay"], jnp.tanh, mixed("decay", 0.9))
        rate = self._low_rank("rate", ranks["rate"], lambda y: y, mixed("rate", 0.9))
        gate = self._low_rank("gate", ranks["gate"], nn.sigmoid, mixed("gate", 0.2))
        decay = decay.astype(wide) + per_head("decay_bias", _decay_bias_init)
        log_decay = -math.exp(-0.5) * nn.sigmoid(decay)
        a = nn.sigmoid(rate.astype(wide) + per_head("rate_bias", zeros))
        removal = unit_normalize(k * per_head("removal", nn.initializers.constant(0.85)))
        k *= 1 + (a - 1) * per_head("replacement", ones)

        o, memory = diagonal_plus_low_rank(
            r, k, v, -a * removal, removal, log_decay, rows.segment_ids, start.memory
        )
        o = layer_normalize(o, size * 1e-5) * per_head("norm_scale", ones)
        o += per_head("norm_bias", zeros)
        o += jnp.sum(r * per_head("bonus", zeros) * k, axis=-1, keepdims=True) * v
        y = Projection(
            (d_model,),
            ("heads", "head_dim", "d_model"),
            self.dims.init.output_matrix(d_model, self.dims.num_layers),
            name="output",
        )(o.astype(x.dtype) * gate)
        return y, None if cache is None else RWKV7Cache(memory, shift)

    def _low_rank(
        self, name: str, rank: int, activation: Callable[[jax.Array], jax.Array], x: jax.Array
    ) -> jax.Array:
        """W₂ activation(W₁ x) [batch, length, heads, head_dim], which starts from W₁ = 0."""
        sizes, zeros = self._sizes, nn.initializers.zeros
        low = Projection((rank,), ("d_model", "rank"), zeros, name=f"{name}_in")(x)
        features = sizes.heads * sizes.key
        y = Projection(
            (features,), ("rank", "heads"), nn.initializers.orthogonal(0.1), name=f"{name}_out"
        )(activation(low))
        return y.reshape(*x.shape[:2], sizes.heads, sizes.key)

    @property
    def _sizes(self) -> MemorySizes:
        return self.config.sizes(self.dims.d_model)

    @property
    def _ranks(self) -> dict[str, int]:
        """The paper's suggestion: multiples of 32 near 1.8 √d_model and 0.6 d_model^0.8."""
        d_model = self.dims.d_model
        small = max(32, 32 * round(1.8 * d_model**0.5 / 32))
        large = max(32, 32 * round(0.6 * d_model**0.8 / 32))
        return {"decay": small, "rate": small, "gate": large}

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> RWKV7Cache:
        shift = ConvolutionCache.empty(batch, 2, self.dims.d_model, dtype)
        return RWKV7Cache(self._sizes.empty(batch, dtype), shift)

    def flops(self, length: int) -> float:
        d_model = self.dims.d_model
        projections = 2.0 * d_model * (4 * d_model + 2 * sum(self._ranks.values()))
        return projections + self._sizes.flops(length, writes=2, solves=True)

    def cache_bytes(self, length: int) -> int:
        dtype = self.dims.dtype
        return self._sizes.bytes(dtype) + ConvolutionCache.bytes(2, self.dims.d_model, dtype)


def _decay_bias_init(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """−6.5 + 5 (i/(d − 1))^{0.85 + √depth} over the d channels of all heads."""
    ramp = jnp.linspace(0.0, 1.0, math.prod(shape), dtype=dtype)
    return (-6.5 + 5 * ramp ** (0.85 + DEPTH**0.5)).reshape(shape)
