"""Pictures as rows of patches: the Vision Transformer (Dosovitskiy et al., 2020, arXiv:2010.11929).

Without class token: Beyer et al., 2022, arXiv:2205.01580. Registers: Darcet et al., 2023,
arXiv:2309.16588. Convolutions below: Xiao et al., 2021, arXiv:2106.14881.
"""

import math
from itertools import pairwise
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from jaxformer.model.dims import Grid
from jaxformer.model.inputs.base import Inputs, InputsConfig, Masked, OfLayers, Share
from jaxformer.model.mixers import Cache
from jaxformer.model.norms import Norm, NormConfig
from jaxformer.model.positions import (
    GridPositionsConfig,
    LearnedPositionsConfig,
    PositionsUnion,
    SinusoidalPositionsConfig,
    sinusoidal,
    sinusoidal_on_grid,
)
from jaxformer.model.projections import Projection
from jaxformer.model.rows import LayerAux, RowInfo

Sides = Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]
OfChannels = Annotated[tuple[float, ...], Field(min_length=1, strict=False)]
SMALLEST = 1e-6  # added to the variance of a patch, which is 0 where all of it has one colour


class PatchesConfig(InputsConfig):
    """Pictures of one size, cut into square patches, row by row."""

    kind: Literal["patches"] = "patches"
    reads = "images"
    shows_tokens = False
    has_table = False

    size: Sides = Field(description="the height and width of a picture, in pixels")
    channels: PositiveInt = Field(3, description="numbers per pixel: 3, or 1 for grey pictures")
    patch: PositiveInt = Field(description="the height and width of a patch, in pixels")
    stem: Annotated[tuple[PositiveInt, ...], Field(strict=False)] = Field(
        (),
        description="the channels of convolutions below the patches, each of which halves the "
        "sides of picture and patch, as [32, 64]",
    )
    mean: OfChannels = Field(
        (0.5,), description="of pixels from 0 to 1, per channel or for all; it is subtracted"
    )
    std: Annotated[tuple[PositiveFloat, ...], Field(min_length=1, strict=False)] = Field(
        (0.5,), description="what pixels are divided by then"
    )
    bias: bool = Field(True, description="adds a bias to every patch's product")
    class_token: bool = Field(False, description="puts a learned token before the patches")
    registers: NonNegativeInt = Field(
        0, description="learned tokens before the patches that have no positions"
    )

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        if any(side % self.patch for side in self.size):
            raise ValueError(
                f"inputs.size {list(self.size)} is not divisible by inputs.patch {self.patch}; "
                f"give a patch that divides both sides"
            )
        if self.patch % 2 ** len(self.stem):
            raise ValueError(
                f"inputs.patch {self.patch} cannot be halved by each of the {len(self.stem)} "
                f"convolutions of inputs.stem; give a multiple of {2 ** len(self.stem)}"
            )
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            if count not in (1, self.channels):
                raise ValueError(
                    f"inputs.{name} has {count} numbers for {self.channels} channels; give one, "
                    f"or one per channel"
                )

        needed = self.length + self.class_token
        if isinstance(positions, LearnedPositionsConfig) and positions.max_length < needed:
            raise ValueError(
                f"positions.max_length is {positions.max_length}, but a picture has {needed} "
                f"places with a position, its class token among them if it has one; give "
                f"positions.max_length={needed}"
            )

    @property
    def can_be_cut(self) -> bool:  # type: ignore[override]
        return not (self.before or self.stem)

    @property
    def before(self) -> int:
        """How many tokens stand before the patches."""
        return self.class_token + self.registers

    @property
    def grid(self) -> Grid:
        height, width = (side // self.patch for side in self.size)
        return Grid(height, width, self.before)

    @property
    def length(self) -> int:
        """How many patches a picture has."""
        return self.grid.height * self.grid.width

    @property
    def numbers(self) -> int:
        return self.patch**2 * self.channels

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *self.size, self.channels), jnp.uint8)


class Patches(Inputs):
    """x_t = W patch_t + b, plus P[t] for learned and sinusoidal positions, behind the class token
    and the registers, of which the class token has a position, the first one.

    Pixels are (value / 255 − mean) / std. With a stem, patches are cut from what its convolutions
    make of them, gelu(norm(W ∗ x)) each, of 3 × 3 with a stride of 2. A learned vector stands for
    W patch_t + b where patch t is hidden, and a stem sees 0 there. A picture is whole, so that each
    row is one document.
    """

    config: PatchesConfig

    def setup(self) -> None:
        super().setup()
        config, dims = self.config, self.dims
        self.stem = [Halving(channels, self.residual.norm) for channels in config.stem]
        self.patch_projection = Projection(
            (dims.d_model,), ("patch", "d_model"), dims.init.matrix(self._in_patch), config.bias
        )
        if config.mask:
            self.mask_embedding = self._learned("mask_embedding", ("d_model",), (dims.d_model,))
        if config.class_token:
            self.class_token = self._learned("class_token", ("d_model",), (dims.d_model,))
        if config.registers:
            shape = (config.registers, dims.d_model)
            self.registers = self._learned("registers", ("length", "d_model"), shape)
        if isinstance(self.positions, LearnedPositionsConfig):
            shape = (self.positions.max_length, dims.d_model)
            self.position_embedding = self._learned(
                "position_embedding", ("length", "d_model"), shape
            )

    def _learned(self, name: str, axes: tuple, shape: tuple[int, ...]) -> jax.Array:
        start = nn.with_logical_partitioning(nn.initializers.normal(0.02), axes)
        return self.param(name, start, shape, jnp.float32)

    def __call__(
        self, tokens: jax.Array, rows: RowInfo, layers: OfLayers, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None, LayerAux]:
        """Pictures [batch, height, width, channels], numbers from 0 to 255 → the output of all
        tokens, those before the patches among them."""
        return layers(self.embed(tokens, rows), self.rows_of_outputs(rows), cache)

    def summed(self, tokens: jax.Array, rows: RowInfo) -> jax.Array:
        config, dims = self.config, self.dims
        wide = jnp.promote_types(dims.dtype, jnp.float32)
        mean, std = (jnp.asarray(255 * np.array(each), wide) for each in (config.mean, config.std))
        pictures, hidden = Masked.of(tokens)
        pixels = (pictures.astype(wide) - mean) / std
        if hidden is not None and self.stem:
            pixels = jnp.where(self._over_pixels(hidden), 0, pixels)
        x = pixels.astype(dims.dtype)
        for halving in self.stem:
            x = halving(x)
        x = self.patch_projection(cut(x, self._patch))
        if hidden is not None:
            x = jnp.where(hidden[..., None], self.mask_embedding.astype(dims.dtype), x)
        first = int(config.class_token)  # the position of the first patch
        match self.positions:
            case LearnedPositionsConfig():
                table = self.position_embedding.astype(dims.dtype)
                x += _from(table, rows.positions[0, 0] + first, x.shape[1])
            case SinusoidalPositionsConfig(layout=layout):
                places = rows.positions + first
                x += sinusoidal(places, dims.d_model, layout).astype(dims.dtype)
            case GridPositionsConfig():
                table = jnp.asarray(sinusoidal_on_grid(config.grid, dims.d_model), dims.dtype)
                x += _from(table, rows.positions[0, 0], x.shape[1])
        before = []
        if config.class_token:
            token = self.class_token.astype(dims.dtype)
            if isinstance(self.positions, LearnedPositionsConfig):
                token += table[0]
            elif isinstance(self.positions, SinusoidalPositionsConfig):
                place, layout = jnp.zeros((1,), jnp.int32), self.positions.layout
                token += sinusoidal(place, dims.d_model, layout)[0].astype(dims.dtype)
            before.append(token[None])
        if config.registers:
            before.append(self.registers.astype(dims.dtype))
        if before:
            learned = jnp.concatenate(before)
            learned = jnp.broadcast_to(learned, (len(x), *learned.shape))
            x = jnp.concatenate([learned, x], axis=1)
        return x

    @nn.nowrap
    def contents(self, tokens: jax.Array, rows: RowInfo) -> jax.Array:
        """The pixels of each patch, minus their mean and divided by their standard deviation (MAE,
        He et al., 2021, arXiv:2111.06377): (p − mean p) / √(variance p + 10⁻⁶), with channels from
        0 to 1."""
        wide = jnp.promote_types(self.dims.dtype, jnp.float32)
        patches = cut(tokens.astype(wide) / 255, self.config.patch)
        centred = patches - jnp.mean(patches, axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + SMALLEST)

    def _over_pixels(self, of_patches: jax.Array) -> jax.Array:
        """[batch, patches] → [batch, height, width, 1]"""
        grid, patch = self.config.grid, self.config.patch
        x = of_patches.reshape(len(of_patches), grid.height, grid.width)
        return jnp.repeat(jnp.repeat(x, patch, axis=1), patch, axis=2)[..., None]

    @nn.nowrap
    def rows_of(self, tokens: jax.Array) -> RowInfo:
        shape = (len(Masked.of(tokens).inputs), self.config.length)
        positions = jnp.arange(self.config.length, dtype=jnp.int32)
        return RowInfo(jnp.broadcast_to(positions, shape), jnp.ones(shape, jnp.int32))

    @nn.nowrap
    def rows_of_outputs(self, rows: RowInfo) -> RowInfo:
        """A row's tokens before its patches belong to its document."""
        before = self.config.before
        if not before:
            return RowInfo(rows.positions, rows.segment_ids)
        numbers = jnp.arange(before, dtype=rows.positions.dtype)
        numbers = jnp.broadcast_to(numbers, (len(rows.positions), before))
        positions = jnp.concatenate([numbers, rows.positions + before], axis=1)
        first = jnp.broadcast_to(rows.segment_ids[:, :1], numbers.shape)
        return RowInfo(positions, jnp.concatenate([first, rows.segment_ids], axis=1))

    @property
    def share(self) -> Share:
        whole = 1 + self.config.before / self.config.length
        return Share(whole, whole)

    @property
    def _patch(self) -> int:
        """The side of a patch above the stem."""
        return self.config.patch >> len(self.config.stem)

    @property
    def _in_patch(self) -> int:
        """How many numbers a patch has above the stem."""
        return self._patch**2 * (self.config.channels, *self.config.stem)[-1]

    @nn.nowrap
    def own_flops(self, length: int) -> float:
        config, flops = self.config, 2.0 * self._in_patch * self.dims.d_model
        for number, pair in enumerate(pairwise((config.channels, *config.stem)), start=1):
            flops += 2.0 * 9 * math.prod(pair) * (config.patch >> number) ** 2
        return flops


def _from(table: jax.Array, first: jax.Array, count: int) -> jax.Array:
    """Rows of a table from `first` on: all pictures have the same places, of which this device may
    have a piece."""
    return jax.lax.dynamic_slice_in_dim(table, first, count)


class Halving(nn.Module):
    """gelu(norm(W ∗ x)): [batch, 2h, 2w, channels in] → [batch, h, w, channels], with zeros around
    the picture."""

    channels: int
    norm: NormConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-1]
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(
                nn.initializers.normal((9 * inputs) ** -0.5),
                ("down", "across", "pixel", "channels"),
            ),
            (3, 3, inputs, self.channels),
            jnp.float32,
        )
        x = jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            window_strides=(2, 2),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jax.nn.gelu(Norm(self.norm, name="norm")(x))


def cut(pixels: jax.Array, patch: int) -> jax.Array:
    """[batch, height, width, channels] → [batch, patches, patch · patch · channels], row by row."""
    batch, height, width, channels = pixels.shape
    x = pixels.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, patch * patch * channels)
