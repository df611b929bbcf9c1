"""S4D-Real: a diagonal state space that does not depend on the input, the control for selective
ones (Gu et al., 2022, arXiv:2206.11893)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from pydantic import Field, PositiveInt

from jaxformer.model.decay_init import log_step_init, s4d_real_init
from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.projections import Projection
from jaxformer.model.rows import RowInfo
from jaxformer.ops.diagonal import Carried, associative_recurrence, in_chunks

CHUNK = 64  # tokens whose states [d_model, state_size] are held at once


class S4DConfig(MixerConfig):
    kind: Literal["s4d"] = "s4d"
    state_size: PositiveInt = Field(64, description="states for each of d_model channels")


@struct.dataclass
class S4DCache:
    state: jax.Array  # [batch, d_model, state_size]
    segment: jax.Array  # [batch], the document it belongs to


class S4D(Mixer):
    """h_t = e^{ΔA} ⊙ h_{t−1} + ((e^{ΔA} − 1) / A) x_t,  z = gelu(h_t C + D x_t),

    y = W_o z ⊙ σ(W_g z). Every channel has its own Δ, A, C and D, which do not depend on the input:
    this is a convolution with one fixed kernel per channel. A = −e^{A_log} starts at −1, …,
    −state_size, Δ between 0.001 and 0.1, and B is 1, since only its product with C counts.
    """

    form = "scan"

    config: S4DConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: S4DCache | None = None
    ) -> tuple[jax.Array, S4DCache | None]:
        size, d_model, init = self.config.state_size, self.dims.d_model, self.dims.init
        wide = jnp.promote_types(x.dtype, jnp.float32)
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache

        def parameter(name: str, first: nn.initializers.Initializer, *sizes: int) -> jax.Array:
            names = ("vector", "state")[: 1 + len(sizes)]
            boxed = nn.with_logical_partitioning(first, names)
            return self.param(name, boxed, (d_model, *sizes), jnp.float32).astype(wide)

        step = jnp.exp(parameter("log_step", log_step_init))
        a = -jnp.exp(parameter("a_log", s4d_real_init, size))
        c = parameter("c", nn.initializers.normal(1.0), size)
        skip = parameter("skip", nn.initializers.normal(1.0))
        exponent = step[:, None] * a  # [d_model, state_size]
        decay, entering = jnp.exp(exponent), jnp.expm1(exponent) / a

        def advance(carried: Carried, tokens: tuple) -> tuple[Carried, jax.Array]:
            x, segments = tokens
            b = x[..., None].astype(wide) * entering  # [batch, chunk, d_model, state_size]
            h = associative_recurrence(jnp.broadcast_to(decay, b.shape), b, segments, *carried)
            return Carried(h[:, -1], segments[:, -1]), jnp.einsum("bldn,dn->bld", h, c)

        carried = Carried(start.state, start.segment)
        last, read = in_chunks(advance, carried, (x, rows.segment_ids), CHUNK)
        z = nn.gelu(read + skip * x).astype(x.dtype)

        def project_out(name: str) -> jax.Array:
            matrix = init.output_matrix(d_model, self.dims.num_layers)
            return Projection((d_model,), ("d_hidden", "d_model"), matrix, name=name)(z)

        y = project_out("output") * nn.sigmoid(project_out("gate"))
        return y, None if cache is None else S4DCache(last.h, rows.segment_ids[:, -1])

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> S4DCache:
        shape = (batch, self.dims.d_model, self.config.state_size)
        state = jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32))
        return S4DCache(state, jnp.full((batch,), -1, jnp.int32))

    def flops(self, length: int) -> float:
        d_model = self.dims.d_model
        # A state's input takes one product, its update two, its output two.
        return d_model * (4.0 * d_model + 5.0 * self.config.state_size)

    def cache_bytes(self, length: int) -> int:
        wide = jnp.promote_types(self.dims.dtype, jnp.float32).itemsize
        return self.dims.d_model * self.config.state_size * wide + 4
