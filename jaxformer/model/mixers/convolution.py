"""The convolution module of the Conformer (Gulati et al., 2020, arXiv:2005.08100, section 2.2)."""

from typing import Literal

import flax.linen as nn
import jax
from jax.typing import DTypeLike
from pydantic import Field, PositiveFloat, PositiveInt

from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.norms import Norm, NormConfig
from jaxformer.model.projections import Projection
from jaxformer.model.rows import RowInfo
from jaxformer.model.short_convolution import ConvolutionCache, ShortConvolution
from jaxformer.ops import shards


class ConvolutionConfig(MixerConfig):
    kind: Literal["convolution"] = "convolution"
    width: PositiveInt = Field(
        16,
        description="how many tokens each channel reads: the token itself and those before it; an "
        "encoder reads as many behind it, too",
    )
    expansion: PositiveFloat = Field(
        1.0, description="the channels that are convolved, as a multiple of d_model"
    )

    @property
    def sees_both_ways(self) -> bool:
        return True


class Convolution(Mixer):
    """y = W_o silu(norm(conv(u ⊙ σ(g)))) with [u; g] = W_i x, one filter per channel. The norm is
    over a token's channels, where the Conformer's is over the batch. In an encoder there are two
    filters, one of which goes over the reversed row, and their sum is taken.
    """

    form = "filter"

    config: ConvolutionConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: ConvolutionCache | None = None
    ) -> tuple[jax.Array, ConvolutionCache | None]:
        init, channels = self.dims.init, self._channels

        def project_in(name: str) -> jax.Array:
            return Projection(
                (channels,), ("d_model", "d_hidden"), init.matrix(self.dims.d_model), name=name
            )(x)

        u = project_in("input") * nn.sigmoid(project_in("gate"))  # [batch, length, channels]
        y, longer = self._filter("conv")(u, rows.segment_ids, cache)
        if not self.dims.is_causal:
            behind = shards.reverse(u), shards.reverse(rows.segment_ids)
            y += shards.reverse(self._filter("conv_behind")(*behind, None)[0])
        y = nn.silu(Norm(NormConfig(), "d_hidden", name="norm")(y))
        output = Projection(
            (self.dims.d_model,),
            ("d_hidden", "d_model"),
            init.output_matrix(channels, self.dims.num_layers),
            name="output",
        )(y)
        return output, None if cache is None else longer

    def _filter(self, name: str) -> ShortConvolution:
        return ShortConvolution(self.config.width, name=name)

    @property
    def _channels(self) -> int:
        return round(self.config.expansion * self.dims.d_model)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> ConvolutionCache:
        if not self.dims.is_causal:
            self.refuse_cache()
        return ConvolutionCache.empty(batch, self.config.width, self._channels, dtype)

    def flops(self, length: int) -> float:
        filters = 1 if self.dims.is_causal else 2
        return (6.0 * self.dims.d_model + 2.0 * filters * self.config.width) * self._channels

    def cache_bytes(self, length: int) -> int:
        if not self.dims.is_causal:
            return 0
        return ConvolutionCache.bytes(self.config.width, self._channels, self.dims.dtype)
