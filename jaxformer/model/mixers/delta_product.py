"""DeltaProduct: several steps of the delta rule a token (Siems et al., 2025, arXiv:2502.10297)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from pydantic import PositiveFloat, PositiveInt

from jaxformer.model.convolved_heads import ConvolvedCache, convolved_heads
from jaxformer.model.decay_init import a_log_init, dt_bias_init
from jaxformer.model.heads import HeadsOutput
from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.mixers.matrix_memory import MemorySizes
from jaxformer.model.norms import unit_normalize
from jaxformer.model.projection import Projection
from jaxformer.ops.delta_rule import delta_rule


class DeltaProductConfig(MixerConfig):
    """`num_householder` steps a token, each with keys, values and β of its own.

    `head_dim` is that of queries and keys, values have `value_expansion` times as many features.
    negative_eigenvalues: β in [0, 2] instead of [0, 1] (arXiv:2411.12537). forget_gate: the decay
    of Gated DeltaNet at the first step of a token (Gated DeltaProduct). output_gate: silu of a
    projection on every output feature.
    """

    kind: Literal["delta_product"] = "delta_product"
    num_heads: PositiveInt = 6
    head_dim: PositiveInt = 256
    value_expansion: PositiveFloat = 2.0
    num_householder: PositiveInt = 2
    conv_width: PositiveInt = 4
    negative_eigenvalues: bool = True
    forget_gate: bool = False
    output_gate: bool = True

    @property
    def sizes(self) -> MemorySizes:
        value = round(self.value_expansion * self.head_dim)
        return MemorySizes(self.num_heads, self.head_dim, value)


class DeltaProduct(Mixer):
    """S_{t,j} = (I − β_{t,j} k_{t,j} k_{t,j}ᵀ) S_{t,j−1} + β_{t,j} k_{t,j} v_{t,j}ᵀ, j = 1 … n_h,

    from S_{t,0} = α_t S_{t−1} to S_t = S_{t,n_h}, and o_t = S_tᵀ q_t / √K, with q, k, v =
    silu(conv(W x)), q and k of length 1, β = σ(W_β x), and α = 1, or with a forget gate
    α = exp(−e^{A} softplus(W_α x + b));  y = W_o (RMSNorm(o) ⊙ silu(W_g x)).
    """

    config: DeltaProductConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: ConvolvedCache | None = None,
    ) -> tuple[jax.Array, ConvolvedCache | None]:
        config, sizes, init = self.config, self.config.sizes, self.dims.init
        (batch, length), heads, steps = x.shape[:2], sizes.heads, config.num_householder
        wide = sizes.wide(x.dtype)
        start = self.init_cache(batch, length, x.dtype) if cache is None else cache
        shapes = {
            "query": (heads, sizes.key),
            "key": (steps, heads, sizes.key),
            "value": (steps, heads, sizes.value),
        }
        (q, k, v), convolution = convolved_heads(
            x, self.dims, shapes, config.conv_width, segment_ids, start.convolution
        )
        q, k = unit_normalize(q) * sizes.key**-0.5, unit_normalize(k)
        matrix = init.matrix(self.dims.d_model)
        beta = Projection((steps, heads), ("d_model", "steps", "heads"), matrix, name="beta")(x)
        beta = nn.sigmoid(beta.astype(wide))
        if config.negative_eigenvalues:
            beta *= 2.0
        log_decay = jnp.zeros_like(beta)
        if config.forget_gate:
            others = [(0, 0), (0, 0), (0, steps - 1), (0, 0)]
            log_decay = jnp.pad(self._log_decay(x)[:, :, None], others)

        def by_step(a: jax.Array) -> jax.Array:
            """[batch, length, steps, …] → [batch, length · steps, …]."""
            return a.reshape(batch, length * steps, *a.shape[3:])

        o, memory = delta_rule(
            jnp.repeat(q, steps, axis=1),
            by_step(k),
            by_step(v),
            by_step(beta),
            by_step(log_decay)[..., None],
            jnp.repeat(segment_ids, steps, axis=1),
            start.memory,
        )
        o = o.reshape(batch, length, steps, heads, sizes.value)[:, :, -1]
        gate = nn.silu if config.output_gate else None
        y = HeadsOutput(self.dims, gate=gate, name="out")(o, x)
        return y, None if cache is None else ConvolvedCache(memory, convolution)

    def _log_decay(self, x: jax.Array) -> jax.Array:
        """log α [batch, length, heads], inside the compact call."""
        heads, matrix = self.config.num_heads, self.dims.init.matrix(self.dims.d_model)
        names = nn.with_logical_partitioning
        a_log = self.param("a_log", names(a_log_init(0.0, 16.0), ("heads",)), (heads,))
        dt_bias = self.param("dt_bias", names(dt_bias_init, ("heads",)), (heads,))
        step = Projection((heads,), ("d_model", "heads"), matrix, name="decay")(x)
        wide = MemorySizes.wide(x.dtype)
        return -jnp.exp(a_log) * nn.softplus(step.astype(wide) + dt_bias)

    @property
    def _channels(self) -> int:
        sizes, steps = self.config.sizes, self.config.num_householder
        return sizes.heads * ((1 + steps) * sizes.key + steps * sizes.value)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> ConvolvedCache:
        config = self.config
        return ConvolvedCache.empty(batch, config.sizes, config.conv_width, self._channels, dtype)

    def flops(self, length: int) -> float:
        config, sizes, steps = self.config, self.config.sizes, self.config.num_householder
        outputs = 2 if config.output_gate else 1
        gates = steps + (1 if config.forget_gate else 0)
        features = self._channels + sizes.heads * (outputs * sizes.value + gates)
        convolution = 2.0 * config.conv_width * self._channels
        memory = steps * sizes.flops(length * steps, solves=True)
        return 2.0 * self.dims.d_model * features + convolution + memory

    def cache_bytes(self, length: int) -> int:
        config = self.config
        return ConvolvedCache.bytes(
            config.sizes, config.conv_width, self._channels, self.dims.dtype
        )
