"""Recordings as log-mel spectrograms, shortened by two convolutions.

The convolutions: Radford et al., 2022, arXiv:2212.04356 (Whisper), with 2 frames per place;
Gulati et al., 2020, arXiv:2005.08100 (Conformer), with 4, where they go over time and frequency.
"""

from functools import partial
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, NonNegativeInt, PositiveInt

from jaxformer.model.inputs.recordings import Recordings, RecordingsConfig, silenced
from jaxformer.model.positions import PositionsUnion
from jaxformer.model.rows import RowInfo
from jaxformer.model.strided_convolution import StridedConvolution
from jaxformer.ops.masks import Stretches, drawn_stretches, outside
from jaxformer.ops.spectrogram import (
    in_places,
    log_mels,
    standardised,
    whisper_range,
    with_beginnings,
)
from jaxformer.schema.base import Schema

WIDTH = 3  # of both convolutions
STRIDES = {1: (1, 1), 2: (1, 2), 4: (2, 2)}


class SpecAugmentConfig(Schema):
    """SpecAugment: in training, stretches of time and bands of frequency are 0, the mean of
    standardised spectrograms."""

    time_masks: NonNegativeInt = Field(10, description="stretches of time per recording")
    longest: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.05, description="of a stretch, as a share of the recording; lengths are uniform from 0"
    )
    frequency_masks: NonNegativeInt = Field(2, description="bands of frequency per recording")
    widest: NonNegativeInt = Field(27, description="mels of a band; widths are uniform from 0")


class FramesConfig(RecordingsConfig):
    """Log-mel spectrograms of recordings, and two convolutions that shorten them."""

    kind: Literal["frames"] = "frames"

    window: PositiveInt = Field(
        400, description="samples of a frame, whose middle is at every hop; 25 ms at 16,000 Hz"
    )
    hop: PositiveInt = Field(
        160, description="samples from one frame to the next; 10 ms at 16,000 Hz"
    )
    mels: PositiveInt = Field(80, description="bands of frequency")
    mel_scale: Literal["slaney", "htk"] = Field(
        "slaney", description="slaney, as in librosa and Whisper, or htk, as in torchaudio"
    )
    normalise: Literal["recording", "whisper"] = Field(
        "recording",
        description="recording: to mean 0 and variance 1 in every band of a recording; whisper: to "
        "its upper 80 dB, most of them from −1 to 1",
    )
    subsampling: Literal[1, 2, 4] = Field(4, description="frames per place that the layers see")
    silence: Literal["hidden", "heard"] = Field(
        "hidden",
        description="what fills up a row behind its recording; heard: it is sound like any other, "
        "as in Whisper, whose rows are always 30 s",
    )
    augment: SpecAugmentConfig | None = Field(
        None, description="hides parts of spectrograms in training; null for none"
    )

    @property
    def samples(self) -> int:
        return self.hop * self.subsampling

    @property
    def numbers(self) -> int:
        return self.subsampling * self.mels

    @property
    def keys(self) -> tuple[str, ...]:  # type: ignore[override]
        return () if self.augment is None else ("noise",)

    @property
    def keeps_apart(self) -> bool:
        """Whether a place is as long as what frames see, half a window to both sides, so that none
        sees two recordings with a place between them."""
        return self.samples > self.window // 2 and self.samples >= self.window - self.hop

    def check_packed(self, positions: PositionsUnion) -> None:
        super().check_packed(positions)
        if self.silence == "heard":
            raise ValueError(
                "data.audio.pack is true, but with model.inputs.silence heard all of a row is one "
                "recording; leave one of them out"
            )
        if not self.keeps_apart:
            raise ValueError(
                f"data.audio.pack is true, but the place between two recordings has "
                f"{self.samples} samples, too few for the window of model.inputs {self.kind}; "
                f"leave it out, or raise model.inputs.subsampling"
            )

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        super().check(d_model, positions)
        if self.augment is not None and self.augment.widest > self.mels:
            raise ValueError(
                f"inputs.augment.widest is {self.augment.widest}, more than inputs.mels "
                f"{self.mels}; give at most that"
            )


class Frames(Recordings):
    """gelu(C₂ gelu(C₁ mels)), with convolutions of width 3 over time, and strides 1 and 1, 1 and 2
    or 2 and 2 for 1, 2 or 4 frames per place. What they see behind the last place of a recording is
    0, so that neither how many zeros fill up a row nor what lies there leaves a trace. So are they
    in the place between two recordings, and in hidden ones, for which a learned vector stands.
    Where silence is heard, all places of a row are the recording's.
    """

    config: FramesConfig

    def setup(self) -> None:
        super().setup()
        d_model = self.dims.d_model
        if self.config.mask:
            start = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("d_model",))
            self.mask_embedding = self.param("mask_embedding", start, (d_model,), jnp.float32)
        first, second = STRIDES[self.config.subsampling]
        self.convolution_1 = StridedConvolution(
            self.dims, d_model, WIDTH, first, 1, ("mels", "d_model")
        )
        self.convolution_2 = StridedConvolution(
            self.dims, d_model, WIDTH, second, 1, ("d_model", "d_out")
        )

    def heard(
        self, waveform: jax.Array, rows: RowInfo, hidden: jax.Array | None = None
    ) -> jax.Array:
        config, rows = self.config, self.rows_of_outputs(rows)
        recordings = rows.segment_ids
        logs = self._logs(waveform, recordings)
        if config.normalise == "whisper":
            x = whisper_range(logs, recordings)
        else:
            x = standardised(logs, recordings, 1e-5)
        if config.augment is not None and self.has_rng("noise"):
            x = augmented(x, rows, self.make_rng("noise"), config.augment)
        seen = recordings if hidden is None else jnp.where(hidden, 0, recordings)
        x = silenced(x, seen).astype(self.dims.dtype)
        for convolution in (self.convolution_1, self.convolution_2):
            x = silenced(nn.gelu(convolution(x), approximate=False), seen)
        if hidden is None:
            return x
        return jnp.where(hidden[..., None], self.mask_embedding.astype(x.dtype), x)

    @nn.nowrap
    def contents(self, tokens: jax.Array, rows: RowInfo) -> jax.Array:
        """The log-mel frames of each place, of which every band has mean 0 and variance 1 over a
        recording."""
        logs = self._logs(self._waveform(tokens, rows), rows.segment_ids)
        standard = standardised(logs, rows.segment_ids, 1e-5)
        return standard.reshape(*rows.segment_ids.shape, self.config.numbers)

    @nn.nowrap
    def _logs(self, waveform: jax.Array, recordings: jax.Array) -> jax.Array:
        """Log-mel frames [batch, frames, mels]."""
        config = self.config
        if config.keeps_apart:
            waveform = with_beginnings(waveform, recordings, config.window)
        return log_mels(
            waveform,
            sample_rate=config.sample_rate,
            window=config.window,
            hop=config.hop,
            mels=config.mels,
            scale=config.mel_scale,
        )

    @nn.nowrap
    def rows_of_outputs(self, rows: RowInfo) -> RowInfo:
        if self.config.silence == "hidden":
            return rows
        return rows._replace(segment_ids=jnp.ones_like(rows.segment_ids))

    @nn.nowrap
    def own_flops(self, length: int) -> float:
        """Those of the convolutions; spectrograms, which have no gradient, are not counted."""
        d_model, between = self.dims.d_model, STRIDES[self.config.subsampling][1]
        convolutions = 2.0 * WIDTH * d_model * (between * self.config.mels + d_model)
        return convolutions + super().own_flops(length)


def augmented(x: jax.Array, rows: RowInfo, key: jax.Array, options: SpecAugmentConfig) -> jax.Array:
    """Spectrograms [batch, frames, mels] with masks over the frames and mels of each recording."""
    of_time, of_frequency = jax.random.split(key)
    recordings, places = rows.segment_ids, in_places(x, rows.segment_ids)
    frames, mels = places.shape[2:]
    count = partial(jnp.bincount, length=recordings.shape[1] + 1)
    lengths = frames * jax.vmap(count)(recordings)  # of every recording, by its number
    longest = (options.longest * lengths).astype(jnp.int32)
    times = drawn_stretches(of_time, options.time_masks, longest, lengths)
    bands = drawn_stretches(
        of_frequency,
        options.frequency_masks,
        jnp.full_like(lengths, options.widest),
        jnp.full_like(lengths, mels),
    )
    in_recording = frames * rows.positions[..., None] + jnp.arange(frames)
    kept_times = outside(in_recording, _of_places(times, recordings))[..., None]
    kept_bands = outside(jnp.arange(mels), _of_places(bands, recordings))[:, :, None]
    return jnp.where(kept_times & kept_bands, places, 0).reshape(x.shape)


def _of_places(stretches: Stretches, recordings: jax.Array) -> Stretches:
    """[batch, recordings, count] → those of each place's recording, [batch, places, 1, count]"""

    def at(drawn: jax.Array) -> jax.Array:
        return jnp.take_along_axis(drawn, recordings[..., None], axis=1)[:, :, None]

    return Stretches(*map(at, stretches))
