"""minGRU: a GRU whose gates see only the input, which makes it a diagonal recurrence
(Feng et al., 2024, arXiv:2410.01201, section 3.1)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from pydantic import Field, PositiveFloat

from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.projections import Projection
from jaxformer.model.rows import RowInfo
from jaxformer.ops.diagonal import diagonal_recurrence


class MinGRUConfig(MixerConfig):
    kind: Literal["min_gru"] = "min_gru"
    expansion: PositiveFloat = Field(
        1.0, description="the width of the state, as a multiple of d_model"
    )


@struct.dataclass
class MinGRUCache:
    state: jax.Array  # [batch, channels]
    segment: jax.Array  # [batch], the document it belongs to


class MinGRU(Mixer):
    """z_t = σ(W_z x_t),  h_t = (1 − z_t) ⊙ h_{t−1} + z_t ⊙ W_h x_t,  y_t = W_o h_t."""

    form = "scan"

    config: MinGRUConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: MinGRUCache | None = None
    ) -> tuple[jax.Array, MinGRUCache | None]:
        init, channels = self.dims.init, self._channels

        def project_in(name: str) -> jax.Array:
            return Projection(
                (channels,), ("d_model", "d_hidden"), init.matrix(self.dims.d_model), name=name
            )(x)

        z = nn.sigmoid(project_in("update"))  # [batch, length, channels]
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache
        h = diagonal_recurrence(
            1 - z, z * project_in("candidate"), rows.segment_ids, start.state, start.segment
        )
        y = Projection(
            (self.dims.d_model,),
            ("d_hidden", "d_model"),
            init.output_matrix(channels, self.dims.num_layers),
            name="output",
        )(h)
        return y, None if cache is None else MinGRUCache(h[:, -1], rows.segment_ids[:, -1])

    @property
    def _channels(self) -> int:
        return round(self.config.expansion * self.dims.d_model)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> MinGRUCache:
        return MinGRUCache(
            jnp.zeros((batch, self._channels), dtype), jnp.full((batch,), -1, jnp.int32)
        )

    def flops(self, length: int) -> float:
        return 6.0 * self.dims.d_model * self._channels + 4.0 * self._channels

    def cache_bytes(self, length: int) -> int:
        return self._channels * jnp.dtype(self.dims.dtype).itemsize + 4
