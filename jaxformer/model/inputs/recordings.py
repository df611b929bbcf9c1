"""What inputs of sound share: a row is one recording, of which layers see a place every so many
samples."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, PositiveInt

from jaxformer.model.inputs.base import Inputs, InputsConfig, Masked, OfLayers
from jaxformer.model.mixers import Cache
from jaxformer.model.position_convolution import PositionConvolution
from jaxformer.model.positions import (
    ConvolutionPositionsConfig,
    LearnedPositionsConfig,
    PositionsUnion,
    SinusoidalPositionsConfig,
    sinusoidal,
)
from jaxformer.model.rows import LayerAux, RowInfo


class RecordingsConfig(InputsConfig):
    """The options that inputs of sound share."""

    reads = "audio"
    can_be_cut = False
    shows_tokens = False
    has_table = False

    sample_rate: PositiveInt = Field(16000, description="of all recordings, in Hz")

    @property
    def samples(self) -> int:
        """How many samples there are per place."""
        raise NotImplementedError

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        if isinstance(positions, ConvolutionPositionsConfig) and d_model % positions.groups:
            raise ValueError(
                f"d_model {d_model} is not divisible by positions.groups {positions.groups}; "
                f"allowed: a divisor of d_model"
            )

    def check_packed(self, positions: PositionsUnion) -> None:
        """Check that a row may hold several recordings, with a place between them.

        Raises:
            ValueError: saying what hears two of them at once.
        """
        if isinstance(positions, ConvolutionPositionsConfig):
            raise ValueError(
                "data.audio.pack is true, but positions convolution read all of a row, whatever "
                "recordings are in it; leave it out, or give other positions"
            )

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, 2 * self.samples), jnp.float32)


class Recordings(Inputs):
    """x_t = what `heard` makes of place t, plus P[t] for learned and sinusoidal positions, or what
    a convolution makes of the places around t.

    A batch's inputs are waveforms [batch, places · samples], numbers from −1 to 1, or int16. The
    segment of a place is the number of its recording. Where it is 0, a waveform is taken for
    silence; a row that holds several recordings has such a place between them, and each of them has
    the output that it has alone.
    """

    config: RecordingsConfig

    def setup(self) -> None:
        super().setup()
        if isinstance(self.positions, LearnedPositionsConfig):
            self.position_embedding = self.param(
                "position_embedding",
                nn.with_logical_partitioning(nn.initializers.normal(0.02), ("length", "d_model")),
                (self.positions.max_length, self.dims.d_model),
                jnp.float32,
            )
        if isinstance(self.positions, ConvolutionPositionsConfig):
            self.position_convolution = PositionConvolution(self.positions, self.dims)

    def heard(
        self, waveform: jax.Array, rows: RowInfo, hidden: jax.Array | None = None
    ) -> jax.Array:
        """[batch, places · samples] → [batch, places, d_model]. In places that hold no sound the
        waveform is 0, and so is what is made of it; some [batch, places] may be hidden."""
        raise NotImplementedError

    def __call__(
        self, tokens: jax.Array, rows: RowInfo, layers: OfLayers, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None, LayerAux]:
        x, rows = self.embed(tokens, rows), self.rows_of_outputs(rows)
        return layers(x, rows._replace(tokens=None), cache)

    def summed(self, tokens: jax.Array, rows: RowInfo) -> jax.Array:
        dims, places, samples = self.dims, rows.segment_ids.shape[1], self.config.samples
        sound, hidden = Masked.of(tokens)
        if sound.shape[1] != places * samples:
            raise ValueError(
                f"recordings of {sound.shape[1]} samples have {places} places; with model.inputs "
                f"{self.config.kind}, which has {samples} samples per place, allowed: "
                f"{places * samples} samples"
            )
        x = self.heard(self._waveform(sound, rows), rows, hidden)
        match self.positions:
            case LearnedPositionsConfig():
                table = self.position_embedding.astype(dims.dtype)
                x += table.at[rows.positions].get(mode="clip")
            case SinusoidalPositionsConfig(layout=layout):
                x += sinusoidal(rows.positions, dims.d_model, layout).astype(dims.dtype)
            case ConvolutionPositionsConfig():
                x += self.position_convolution(x)
        return x

    @nn.nowrap
    def own_flops(self, length: int) -> float:
        if not isinstance(self.positions, ConvolutionPositionsConfig):
            return 0.0
        return self.positions.flops(self.dims.d_model)

    @nn.nowrap
    def _waveform(self, sound: jax.Array, rows: RowInfo) -> jax.Array:
        """Numbers from −1 to 1, 0 in places that hold no sound."""
        waveform = sound.astype(jnp.promote_types(self.dims.dtype, jnp.float32))
        if jnp.issubdtype(sound.dtype, jnp.integer):
            waveform /= 2**15
        return silenced(waveform[..., None], rows.segment_ids)[..., 0]

    @nn.nowrap
    def rows_of(self, tokens: jax.Array) -> RowInfo:
        rows, samples = Masked.of(tokens).inputs.shape
        shape = (rows, samples // self.config.samples)
        positions = jnp.arange(shape[1], dtype=jnp.int32)
        return RowInfo(jnp.broadcast_to(positions, shape), jnp.ones(shape, jnp.int32))


def silenced(x: jax.Array, recordings: jax.Array) -> jax.Array:
    """x [batch, frames, features], 0 in frames of places [batch, places] of no recording."""
    real = jnp.repeat(recordings != 0, x.shape[1] // recordings.shape[1], axis=1)
    return jnp.where(real[..., None], x, 0)
