"""Recordings as waveforms, read by the feature encoder of wav2vec 2.0 (Baevski et al., 2020,
arXiv:2006.11477)."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, PositiveInt

from jaxformer.model.inputs.recordings import Recordings, RecordingsConfig, silenced
from jaxformer.model.norms import Norm, NormConfig
from jaxformer.model.positions import PositionsUnion
from jaxformer.model.projections import Projection
from jaxformer.model.rows import RowInfo
from jaxformer.model.strided_convolution import StridedConvolution
from jaxformer.ops.spectrogram import standardised

WIDTHS = (10, 3, 3, 3, 3, 2, 2)
STRIDES = (5, 2, 2, 2, 2, 2, 2)
SEEN = 400  # samples that a place sees
LAYER_NORM = NormConfig(kind="layer", bias=True, eps=1e-5)


class RawConfig(RecordingsConfig):
    """Seven convolutions over the waveform, with 320 samples per place: 20 ms at 16,000 Hz."""

    kind: Literal["raw"] = "raw"

    channels: PositiveInt = Field(512, description="the width of the convolutions")
    norm: Literal["group", "layer"] = Field(
        "group",
        description="group: the first convolution is normalised over the recording, channel by "
        "channel, as in the base models; layer: all are, over their channels, and have biases, as "
        "in the large ones",
    )

    @property
    def samples(self) -> int:
        return math.prod(STRIDES)

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        super().check(d_model, positions)
        if self.mask:
            raise ValueError(
                "inputs.mask is true, but waveforms are never hidden; leave it out, or give "
                "inputs of kind frames"
            )


class OverRecording(nn.Module):
    """scale ⊙ (x − mean) / std + bias, of every channel over all frames of the first convolution
    that a recording's places see, some of which lie in the silence behind it."""

    @nn.compact
    def __call__(self, x: jax.Array, recordings: jax.Array) -> jax.Array:
        """x [batch, frames, channels], recordings [batch, places] → the shape of x."""
        frames, of_place = x.shape[1], math.prod(STRIDES[1:])
        # So many frames of the place behind a recording are seen as well.
        behind = (SEEN - math.prod(STRIDES) - WIDTHS[0]) // STRIDES[0] + 1
        missing = of_place * (recordings.shape[1] + 1) - frames
        padded = jnp.pad(x, [(0, 0), (0, missing), (0, 0)])
        own, before = (jnp.pad(recordings, [(0, 0), side]) for side in ((0, 1), (1, 0)))
        seen = (own[..., None] != 0) | (jnp.arange(of_place) < behind)
        ones, zeros = (
            nn.with_logical_partitioning(start, ("channels",))
            for start in (nn.initializers.ones, nn.initializers.zeros)
        )
        scale = self.param("scale", ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", zeros, x.shape[-1:], jnp.float32)
        wide = padded.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = standardised(wide, jnp.where(own != 0, own, before), LAYER_NORM.eps, seen)
        y = y[:, :frames].astype(x.dtype)
        return y * scale.astype(x.dtype) + bias.astype(x.dtype)


class Raw(Recordings):
    """W norm(h₇) + b, where h_i = gelu(norm_i(C_i h_{i−1})) and h₀ is the waveform, with mean 0 and
    variance 1 over the recording. Place t sees the 400 samples from sample 320 t on, so that the
    last one sees 80 samples of silence behind the recording.
    """

    config: RawConfig

    def setup(self) -> None:
        super().setup()
        config, dims = self.config, self.dims
        per_layer = config.norm == "layer"
        self.convolutions = [
            StridedConvolution(
                dims, config.channels, width, stride, 0, ("channels", "channels_out"), per_layer
            )
            for width, stride in zip(WIDTHS, STRIDES, strict=True)
        ]
        if per_layer:
            self.norms = [Norm(LAYER_NORM, "channels") for _ in WIDTHS]
        else:
            self.norm = OverRecording()
        self.projection_norm = Norm(LAYER_NORM, "channels")
        self.projection = Projection(
            (dims.d_model,), ("channels", "d_model"), dims.init.matrix(config.channels), True
        )

    def heard(
        self, waveform: jax.Array, rows: RowInfo, hidden: jax.Array | None = None
    ) -> jax.Array:
        recordings, behind = rows.segment_ids, SEEN - self.config.samples
        normalised = standardised(waveform[..., None], recordings, 1e-7)
        x = jnp.pad(silenced(normalised, recordings), [(0, 0), (0, behind), (0, 0)])
        x = x.astype(self.dims.dtype)
        for layer, convolution in enumerate(self.convolutions):
            x = convolution(x)
            if self.config.norm == "layer":
                x = self.norms[layer](x)
            elif layer == 0:
                x = self.norm(x, recordings)
            x = nn.gelu(x, approximate=False)
        return silenced(self.projection(self.projection_norm(x)), recordings)

    @nn.nowrap
    def own_flops(self, length: int) -> float:
        channels, frames = self.config.channels, self.config.samples
        total = super().own_flops(length)
        for layer, (width, stride) in enumerate(zip(WIDTHS, STRIDES, strict=True)):
            frames //= stride
            total += 2.0 * frames * width * (channels if layer else 1) * channels
        return total + 2.0 * channels * self.dims.d_model
