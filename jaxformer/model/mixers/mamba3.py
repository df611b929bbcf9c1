"""Mamba-3: a state space with one decay per head, complex states and a trapezoidal rule (Lahoti et
al., 2026, arXiv:2603.15569), with one input and one output per head."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from pydantic import Field

from jaxformer.model.decay_init import dt_bias_init
from jaxformer.model.mixers.base import Mixer
from jaxformer.model.mixers.matrix_memory import MemorySizes
from jaxformer.model.mixers.state_space import StateSpaceConfig
from jaxformer.model.norms import Norm, NormConfig
from jaxformer.model.positions import PositionsUnion, rope
from jaxformer.model.projections import Projection, project_heads
from jaxformer.model.rows import RowInfo
from jaxformer.model.short_convolution import ConvolutionCache
from jaxformer.model.token_shift import token_before
from jaxformer.ops.decay import State
from jaxformer.ops.decayed_outer_product import decayed_outer_product
from jaxformer.ops.diagonal import diagonal_recurrence

EPSILON = 1e-5
LEAST_RATE = 1e-4  # of decay: −A is not below it


class Mamba3Config(StateSpaceConfig):
    kind: Literal["mamba3"] = "mamba3"
    rope_fraction: float = Field(
        0.5, gt=0, le=1, description="the share of the states that turn, pair by pair"
    )

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        super().check(d_model, positions)
        if not self.pairs:
            raise ValueError(
                f"state_size {self.state_size} × rope_fraction {self.rope_fraction:g} holds no "
                f"pair of states to turn; give larger ones"
            )

    @property
    def pairs(self) -> int:
        """How many pairs of states turn."""
        return int(self.state_size * self.rope_fraction) // 2


@struct.dataclass
class Mamba3Cache:
    memory: State  # N, what tokens before the last one have left
    phase: jax.Array  # [batch, heads, pairs], how far pairs have turned, in radians
    last: ConvolutionCache  # of the last token: B, x and λ Δ, side by side for each head


class Mamba3(Mixer):
    """S_t = α_t S_{t−1} + (1 − λ_t) Δ_t α_t B_{t−1} x_{t−1}ᵀ + λ_t Δ_t B_t x_tᵀ,
    o_t = S_tᵀ C_t + D x_t,  y = W_o (o ⊙ silu(W_z u)),

    with x = W_x u, α = e^{−aΔ}, a = max(softplus(W_a u), 10⁻⁴), Δ = softplus(W_Δ u + b) and
    λ = σ(W_λ u). B and C are RMSNorm(W u) plus a bias per head, which starts at 1. A share of their
    states turns, pair by pair, by the angle Σ_{s≤t} π Δ_s tanh(W_θ u_s) over the tokens of the
    document: the states are complex numbers. There is no convolution.

    For the engine, token t writes what is due to the token before it, so that its state is
    N_t = S_t − λ_t Δ_t B_t x_tᵀ:

        N_t = α_t N_{t−1} + α_t (λ_{t−1} Δ_{t−1} + (1 − λ_t) Δ_t) B_{t−1} x_{t−1}ᵀ.
    """

    config: Mamba3Config

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: Mamba3Cache | None = None
    ) -> tuple[jax.Array, Mamba3Cache | None]:
        config, sizes, init = self.config, self._sizes, self.dims.init
        heads, key, value = sizes
        wide, matrix = sizes.wide(x.dtype), init.matrix(self.dims.d_model)
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache

        def per_head(name: str) -> jax.Array:
            """[batch, length, heads]."""
            return Projection((heads,), ("d_model", "heads"), matrix, name=name)(x).astype(wide)

        def parameter(name: str, init: nn.initializers.Initializer, *sizes: int) -> jax.Array:
            names = nn.with_logical_partitioning(init, ("heads", "state")[: 1 + len(sizes)])
            return self.param(name, names, (heads, *sizes), jnp.float32).astype(wide)

        ones = nn.initializers.ones
        dt = nn.softplus(per_head("dt") + parameter("dt_bias", dt_bias_init))
        log_decay = -jnp.maximum(nn.softplus(per_head("a")), LEAST_RATE) * dt
        end = nn.sigmoid(per_head("trapezoid"))  # λ, the weight of the end of a step

        angle = Projection((config.pairs,), ("d_model", "rank"), matrix, name="angle")(x)
        turn = math.pi * dt[..., None] * jnp.tanh(angle.astype(wide))[:, :, None]
        phase = diagonal_recurrence(
            jnp.ones_like(turn), turn, rows.segment_ids, start.phase, start.memory.segment
        )  # [batch, length, heads, pairs]
        rotation = jnp.cos(phase), jnp.sin(phase)

        def states(name: str) -> jax.Array:
            """[batch, length, heads, state_size]."""
            names, features = ("d_model", "group", "state"), (config.num_groups, key)
            of_groups = Projection(features, names, matrix, name=name)(x).astype(wide)
            norm = Norm(NormConfig(eps=EPSILON), axis_name="state", name=f"{name}_norm")
            of_heads = jnp.repeat(norm(of_groups), heads // config.num_groups, axis=2)
            return rope(of_heads + parameter(f"{name}_bias", ones, key), rotation)

        b, c = states("b"), states("c")
        u = project_heads(x, self.dims, "x", heads, value).astype(wide)
        of_end = (end * dt)[..., None]
        token = jnp.concatenate([b, u, of_end], axis=-1).reshape(*x.shape[:2], -1)
        before, last = token_before(token, rows.segment_ids, start.last)
        b_before, u_before, of_end_before = jnp.split(
            before.reshape(*x.shape[:2], heads, -1), [key, key + value], axis=-1
        )
        weight = jnp.exp(log_decay)[..., None] * (of_end_before + ((1 - end) * dt)[..., None])
        o, memory = decayed_outer_product(
            c, b_before, weight * u_before, log_decay[..., None], rows.segment_ids, start.memory
        )
        own = of_end * jnp.sum(b * c, axis=-1, keepdims=True)
        o += (own + parameter("skip", ones)[:, None]) * u

        z = project_heads(x, self.dims, "z", heads, value)
        y = Projection(
            (self.dims.d_model,),
            ("heads", "head_dim", "d_model"),
            init.output_matrix(heads * value, self.dims.num_layers),
            name="output",
        )(o.astype(x.dtype) * nn.silu(z))
        if cache is None:
            return y, None
        return y, Mamba3Cache(memory, phase[:, -1] % (2 * math.pi), last)

    @property
    def _sizes(self) -> MemorySizes:
        return self.config.sizes(self.dims.d_model)

    @property
    def _of_last(self) -> int:
        """The numbers that the cache holds of the last token."""
        heads, key, value = self._sizes
        return heads * (key + value + 1)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> Mamba3Cache:
        sizes = self._sizes
        wide = sizes.wide(dtype)
        return Mamba3Cache(
            sizes.empty(batch, dtype),
            jnp.zeros((batch, sizes.heads, self.config.pairs), wide),
            ConvolutionCache.empty(batch, 2, self._of_last, wide),
        )

    def flops(self, length: int) -> float:
        heads, key, value = sizes = self._sizes
        features = heads * (3 * value + 3) + 2 * self.config.num_groups * key + self.config.pairs
        return 2.0 * self.dims.d_model * features + sizes.flops(length)

    def cache_bytes(self, length: int) -> int:
        sizes, dtype = self._sizes, self.dims.dtype
        wide = sizes.wide(dtype)
        phase = sizes.heads * self.config.pairs * wide.itemsize
        return sizes.bytes(dtype) + phase + ConvolutionCache.bytes(2, self._of_last, wide)
