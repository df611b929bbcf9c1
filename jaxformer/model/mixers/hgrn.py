"""HGRN: a gated linear recurrence of complex numbers that turn at a constant rate (Qin et al.,
2023, arXiv:2311.04823)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from pydantic import Field, PositiveFloat

from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.norms import Norm, NormConfig
from jaxformer.model.projections import Projection
from jaxformer.model.rows import RowInfo
from jaxformer.ops.diagonal import diagonal_recurrence


class HGRNConfig(MixerConfig):
    kind: Literal["hgrn"] = "hgrn"
    expansion: PositiveFloat = Field(
        1.0, description="the number of complex channels, as a multiple of d_model"
    )
    lower_bound: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="the least value of forget gates; the paper learns one per channel that rises "
        "from layer to layer",
    )


@struct.dataclass
class HGRNCache:
    state: jax.Array  # [batch, channels], complex
    segment: jax.Array  # [batch], the document it belongs to


class HGRN(Mixer):
    """h_t = λ_t ⊙ e^{iθ} ⊙ h_{t−1} + (1 − λ_t) ⊙ c_t,

    with c = silu(W_r x) + i silu(W_i x), λ = γ + (1 − γ) σ(W_λ x), γ the lower bound, and a
    parameter θ per channel, which starts at 10000^{−2j/channels} for channel j;
    y = W_o (LayerNorm([Re h; Im h]) ⊙ silu(W_g x)), with a bias beside each W. The norm stands
    before the gate, as in the authors' code.
    """

    form = "scan"

    config: HGRNConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: HGRNCache | None = None
    ) -> tuple[jax.Array, HGRNCache | None]:
        init, channels, bound = self.dims.init, self._channels, self.config.lower_bound
        wide = jnp.promote_types(x.dtype, jnp.float32)
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache

        def project_in(name: str, features: int) -> jax.Array:
            matrix, names = init.matrix(self.dims.d_model), ("d_model", "d_hidden")
            return Projection((features,), names, matrix, use_bias=True, name=name)(x)

        entering = nn.silu(project_in("input", 2 * channels)).astype(wide)
        c = jax.lax.complex(*jnp.split(entering, 2, axis=-1))  # [batch, length, channels]
        new = (1 - bound) * nn.sigmoid(-project_in("forget", channels).astype(wide))  # 1 − λ
        theta = self.param(
            "theta",
            nn.with_logical_partitioning(_theta_init, ("d_hidden",)),
            (channels,),
            jnp.float32,
        ).astype(wide)
        turn = jax.lax.complex(jnp.cos(theta), jnp.sin(theta))
        h = diagonal_recurrence(
            (1 - new) * turn, new * c, rows.segment_ids, start.state, start.segment
        )
        features = jnp.concatenate([h.real, h.imag], axis=-1)  # [batch, length, 2 · channels]
        layer_norm = NormConfig(kind="layer", eps=1e-5, bias=True)
        normal = Norm(layer_norm, axis_name="d_hidden", name="norm")(features).astype(x.dtype)
        y = Projection(
            (self.dims.d_model,),
            ("d_hidden", "d_model"),
            init.output_matrix(2 * channels, self.dims.num_layers),
            use_bias=True,
            name="output",
        )(normal * nn.silu(project_in("gate", 2 * channels)))
        return y, None if cache is None else HGRNCache(h[:, -1], rows.segment_ids[:, -1])

    @property
    def _channels(self) -> int:
        return round(self.config.expansion * self.dims.d_model)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> HGRNCache:
        state = jnp.zeros((batch, self._channels), jnp.promote_types(dtype, jnp.complex64))
        return HGRNCache(state, jnp.full((batch,), -1, jnp.int32))

    def flops(self, length: int) -> float:
        # A product of complex numbers takes six, a sum two.
        return self._channels * (14.0 * self.dims.d_model + 8.0)

    def cache_bytes(self, length: int) -> int:
        return self._channels * jnp.promote_types(self.dims.dtype, jnp.complex64).itemsize + 4


def _theta_init(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """10000^{−2j/channels} for channel j, in radians per token."""
    (channels,) = shape
    return 10000.0 ** (-2 / channels * jnp.arange(channels, dtype=dtype))
