"""Position schemes: learned, sinusoidal and convolutional (added to embeddings), RoPE, ALiBi and
T5's relative positions (in attention).

RoPE: Su et al., 2021, arXiv:2104.09864. Position interpolation (`linear`): Chen et al., 2023,
arXiv:2306.15595. NTK-aware and dynamic scaling, and YaRN: Peng et al., 2023, arXiv:2309.00071.
Llama 3's scaling: Dubey et al., 2024, arXiv:2407.21783. LongRoPE: Ding et al., 2024,
arXiv:2402.13753. Axial RoPE, of pictures: Heo et al., 2024, arXiv:2403.13298. ALiBi: Press et al.,
2021, arXiv:2108.12409. T5's: Raffel et al., 2020, arXiv:1910.10683.
"""

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from pydantic import Field, PositiveFloat, PositiveInt

from jaxformer.model.dims import Grid
from jaxformer.model.rows import RowInfo
from jaxformer.ops.shards import of_whole
from jaxformer.schema.base import Schema


class NoPositionsConfig(Schema):
    """Tokens have no positions."""

    kind: Literal["none"] = "none"


class LearnedPositionsConfig(Schema):
    """A trained vector for each position, added to the embedding."""

    kind: Literal["learned"] = "learned"
    max_length: PositiveInt = Field(description="the number of positions; longer rows are refused")


class SinusoidalPositionsConfig(Schema):
    """Sines and cosines of each position, added to the embedding."""

    kind: Literal["sinusoidal"] = "sinusoidal"
    layout: Literal["interleaved", "halves"] = Field(
        "interleaved",
        description="interleaved: the sine and the cosine of each frequency side by side, as in "
        "arXiv:1706.03762; halves: all sines before all cosines, of slightly lower frequencies, as "
        "in tensor2tensor and Whisper",
    )

    def check(self, d_model: int) -> None:
        """Check that there are two halves of at least two frequencies, where they are asked for.

        Raises:
            ValueError: there are not.
        """
        if self.layout == "halves" and (d_model % 2 or d_model < 4):
            raise ValueError(
                f"positions.layout is halves, which needs an even d_model of at least 4, and "
                f"d_model is {d_model}"
            )


class GridPositionsConfig(Schema):
    """Sines and cosines of the row and of the column of each patch, added to its embedding."""

    kind: Literal["sinusoidal_2d"] = "sinusoidal_2d"


class ConvolutionPositionsConfig(Schema):
    """What a convolution makes of the places around each place, added to it: for recordings."""

    kind: Literal["convolution"] = "convolution"
    width: PositiveInt = Field(128, description="how many places the convolution sees")
    groups: PositiveInt = Field(
        16, description="parts of d_model, each of which the convolution makes of itself alone"
    )

    def flops(self, d_model: int) -> float:
        """Forward FLOPs per place."""
        return 2.0 * self.width * d_model * d_model / self.groups


class ALiBiConfig(Schema):
    """A bias on the attention logits, linear in the distance."""

    kind: Literal["alibi"] = "alibi"


class RelativePositionsConfig(Schema):
    """A learned bias on the attention logits for every head and bucket of distances, which all
    layers share (T5)."""

    kind: Literal["relative"] = "relative"
    num_buckets: Annotated[int, Field(ge=2, le=1024)] = Field(
        32,
        description="half of them are of one distance each, the others of ranges that grow. In a "
        "model of order full, half of all are for keys up to the query, half for those ahead of it",
    )
    max_distance: PositiveInt = Field(
        128, description="in tokens; from here on, distances are in the last bucket"
    )

    def check(self, order: Literal["causal", "full"]) -> None:
        """Check that there are distances for all buckets, in a model of this order.

        Raises:
            ValueError: there are not.
        """
        sides = 1 if order == "causal" else 2
        if self.num_buckets % sides or self.num_buckets < 2 * sides:
            raise ValueError(
                f"positions.num_buckets is {self.num_buckets}, half of which are for each side in "
                f"a model of order full; allowed: even numbers from 4"
            )
        each = self.num_buckets // sides // 2
        if self.max_distance <= each:
            raise ValueError(
                f"positions.max_distance is {self.max_distance}, but {each} of num_buckets "
                f"{self.num_buckets} are for one distance each; allowed: more than {each}"
            )


class LinearScalingConfig(Schema):
    """Position interpolation."""

    kind: Literal["linear"] = "linear"
    factor: PositiveFloat = Field(description="divides all positions")


class NTKScalingConfig(Schema):
    """NTK-aware scaling."""

    kind: Literal["ntk"] = "ntk"
    factor: PositiveFloat = Field(description="raises the base for rows this many times as long")


class DynamicScalingConfig(Schema):
    """NTK-aware scaling that follows the length of each document."""

    kind: Literal["dynamic"] = "dynamic"
    factor: PositiveFloat = Field(description="as in NTK-aware scaling")
    original_max_length: PositiveInt = Field(
        description="the length that the model was trained for"
    )


class YaRNScalingConfig(Schema):
    """YaRN: fast pairs are left alone, slow pairs are interpolated."""

    kind: Literal["yarn"] = "yarn"
    factor: PositiveFloat = Field(description="how many times as long rows may be")
    original_max_length: PositiveInt = Field(
        description="the length that the model was trained for"
    )
    beta_fast: PositiveFloat = Field(
        32.0,
        description="pairs that turn at least so often over the original length are left alone",
    )
    beta_slow: PositiveFloat = Field(
        1.0, description="pairs that turn at most so often are scaled by the whole factor"
    )
    attention_factor: PositiveFloat | None = Field(
        None, description="multiplies cos and sin; 0.1 ln(factor) + 1 if null"
    )
    truncate: bool = Field(
        True, description="rounds the ends of the ramp between them to whole pairs"
    )


class Llama3ScalingConfig(Schema):
    """Llama 3.1's scaling: only low frequencies are divided."""

    kind: Literal["llama3"] = "llama3"
    factor: PositiveFloat = Field(description="divides the low frequencies")
    original_max_length: PositiveInt = Field(
        description="the length that the model was trained for"
    )
    low_frequency_factor: PositiveFloat = Field(
        1.0,
        description="wavelengths above original_max_length / this are scaled by the whole factor",
    )
    high_frequency_factor: PositiveFloat = Field(
        4.0, description="wavelengths below original_max_length / this are left alone"
    )


Factors = Annotated[tuple[PositiveFloat, ...], Field(min_length=1, strict=False)]


class LongRoPEScalingConfig(Schema):
    """A factor on the wavelength of every rotated pair."""

    kind: Literal["longrope"] = "longrope"
    short_factors: Factors = Field(
        description="one factor per rotated pair, for documents up to the original length"
    )
    long_factors: Factors = Field(description="one factor per rotated pair, for longer documents")
    original_max_length: PositiveInt = Field(
        description="the length that the model was trained for, in tokens"
    )
    attention_factor: PositiveFloat = Field(1.0, description="multiplies cos and sin")


ScalingUnion = Annotated[
    LinearScalingConfig
    | NTKScalingConfig
    | DynamicScalingConfig
    | YaRNScalingConfig
    | Llama3ScalingConfig
    | LongRoPEScalingConfig,
    Field(discriminator="kind"),
]


class RoPEConfig(Schema):
    """Rotary positions: pairs of features of queries and keys are rotated."""

    kind: Literal["rope"] = "rope"
    base: PositiveFloat = Field(10000.0, description="the base of the wavelengths")
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="the share of each head's features that is rotated"
    )
    scaling: ScalingUnion | None = Field(None, description="adapts the wavelengths to longer rows")
    max_length: PositiveInt | None = Field(
        None, description="refuse rows longer than this; null for no limit"
    )

    def rotated_size(self, head_dim: int) -> int:
        """How many of `head_dim` features are rotated.

        Raises:
            ValueError: when that is not a positive even number.
        """
        size = round(head_dim * self.fraction)
        if size % 2 or size == 0:
            raise ValueError(
                f"RoPE rotates pairs, but head_dim {head_dim} × fraction {self.fraction} is "
                f"{size}; choose sizes that give an even number"
            )
        if isinstance(self.scaling, LongRoPEScalingConfig):
            for name in ("short_factors", "long_factors"):
                count = len(getattr(self.scaling, name))
                if count != size // 2:
                    raise ValueError(
                        f"scaling has {count} {name}, but RoPE rotates {size // 2} pairs of a "
                        f"head; give one for each"
                    )
        return size


class AxialRoPEConfig(Schema):
    """Rotary positions in a picture: half of the pairs are rotated by a token's row, the others by
    its column. Tokens before the picture, such as a class token, are not rotated."""

    kind: Literal["axial_rope"] = "axial_rope"
    base: PositiveFloat = Field(100.0, description="the base of the wavelengths")

    def check(self, head_dim: int) -> None:
        """Check that a head's features are two halves of pairs.

        Raises:
            ValueError: they are not.
        """
        if head_dim % 4:
            raise ValueError(
                f"axial_rope rotates half of the pairs of a head by the row and half by the "
                f"column, but head_dim is {head_dim}; choose sizes that give a multiple of 4"
            )


PositionsUnion = Annotated[
    NoPositionsConfig
    | LearnedPositionsConfig
    | SinusoidalPositionsConfig
    | GridPositionsConfig
    | ConvolutionPositionsConfig
    | RoPEConfig
    | AxialRoPEConfig
    | ALiBiConfig
    | RelativePositionsConfig,
    Field(discriminator="kind"),
]

# What the kinds are that single layers cannot have.
OF_THE_MODEL = {
    **dict.fromkeys(
        ("learned", "sinusoidal", "sinusoidal_2d", "convolution"),
        "added to the embeddings, below all layers",
    ),
    "relative": "one table that all of the model's layers share",
}


def rope_frequencies(
    config: RoPEConfig, head_dim: int, lengths: ArrayLike = 1.0
) -> tuple[np.ndarray | jax.Array, float]:
    """Radians per position of each rotated pair [..., rotated / 2], and the factor on cos and sin.

    `lengths` [..., 1] are those of documents; only some scalings depend on them.
    """
    size = config.rotated_size(head_dim)
    exponent = np.arange(0, size, 2, dtype=np.float64) / size
    scaling, base = config.scaling, config.base
    if isinstance(scaling, NTKScalingConfig):
        base = base * scaling.factor ** (size / (size - 2))
    frequencies = base**-exponent
    match scaling:
        case LinearScalingConfig():
            return frequencies / scaling.factor, 1.0
        case DynamicScalingConfig():
            ratio = jnp.maximum(lengths / scaling.original_max_length, 1.0)
            stretch = scaling.factor * ratio - (scaling.factor - 1)
            return frequencies * stretch ** (-exponent * size / (size - 2)), 1.0
        case YaRNScalingConfig():
            kept = _yarn_kept(scaling, size, base)
            usual = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
            return frequencies * (kept + (1 - kept) / scaling.factor), (
                scaling.attention_factor or usual
            )
        case Llama3ScalingConfig():
            turns = scaling.original_max_length * frequencies / (2 * np.pi)
            low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
            kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
            return frequencies * (kept + (1 - kept) / scaling.factor), 1.0
        case LongRoPEScalingConfig():
            short, long = (
                frequencies / np.asarray(factors)
                for factors in (scaling.short_factors, scaling.long_factors)
            )
            is_long = jnp.asarray(lengths) > scaling.original_max_length
            return jnp.where(is_long, long, short), scaling.attention_factor
    return frequencies, 1.0


def _yarn_kept(scaling: YaRNScalingConfig, size: int, base: float) -> np.ndarray:
    """The share [size / 2] of every frequency that YaRN leaves alone, from 1 (fast) to 0 (slow)."""

    def pair_with(turns: float) -> float:
        ratio = scaling.original_max_length / (turns * 2 * math.pi)
        return size * math.log(ratio) / (2 * math.log(base))

    first, last = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    ramp = (np.arange(size // 2) - first) / max(last - first, 0.001)
    return 1.0 - np.clip(ramp, 0.0, 1.0)


def rope_rotation(
    rows: RowInfo, config: RoPEConfig, head_dim: int, dtype: DTypeLike
) -> tuple[jax.Array, jax.Array]:
    """cos and sin of position · frequency_i, each [batch, length, 1, rotated / 2].

    The phases are float32 whatever `dtype` is: bfloat16 cannot count past 256. Scalings that depend
    on a document's length take it from the tokens given so far: as in transformers, keys cached
    before it outgrew the original length stay as they were.
    """
    phase_type = jnp.promote_types(dtype, jnp.float32)
    lengths = jnp.ones((), phase_type)
    if isinstance(config.scaling, DynamicScalingConfig | LongRoPEScalingConfig):
        lengths = document_lengths(rows)[..., None].astype(phase_type)
    frequencies, factor = rope_frequencies(config, head_dim, lengths)
    phases = rows.positions[..., None].astype(phase_type) * jnp.asarray(frequencies, phase_type)
    return _cos_and_sin(phases, factor, dtype)


def axial_rotation(
    rows: RowInfo, config: AxialRoPEConfig, grid: Grid, head_dim: int, dtype: DTypeLike
) -> tuple[jax.Array, jax.Array]:
    """cos and sin of row · base^{−4i/head_dim} for pair i < head_dim / 4, of column · the same for
    the pairs behind, each [batch, length, 1, head_dim / 2]."""
    phase_type = jnp.promote_types(dtype, jnp.float32)
    place = jnp.maximum(rows.positions - grid.before, 0)  # before the picture as at 0: unrotated
    by_axis = jnp.stack([place // grid.width, place % grid.width], axis=-1)
    frequencies = config.base ** -(np.arange(0, head_dim, 4) / head_dim)
    phases = by_axis[..., None].astype(phase_type) * jnp.asarray(frequencies, phase_type)
    return _cos_and_sin(phases.reshape(*place.shape, -1), 1.0, dtype)


def _cos_and_sin(phases: jax.Array, factor: float, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """factor · cos and sin of phases [batch, length, pairs], each [batch, length, 1, pairs]."""

    def table(is_cos: jax.Array) -> jax.Array:
        return factor * jnp.where(is_cos, jnp.cos(phases), jnp.sin(phases))

    # A loop of two, or XLA on a CPU computes cos and sin again for every head and use.
    cos, sin = jax.lax.map(table, jnp.array([True, False])).astype(dtype)[..., None, :]
    return cos, sin


def document_lengths(rows: RowInfo) -> jax.Array:
    """[batch, length]: for every token one more than the position of its document's last token."""
    return of_whole(_document_lengths, rows.positions, rows.segment_ids)


def _document_lengths(positions: jax.Array, segment_ids: jax.Array) -> jax.Array:
    length = positions.shape[1]
    differs = segment_ids[:, 1:] != segment_ids[:, :-1]
    is_last = jnp.pad(differs, [(0, 0), (0, 1)], constant_values=True)
    last = jax.lax.cummin(
        jnp.where(is_last, jnp.arange(length, dtype=jnp.int32), length), axis=1, reverse=True
    )
    return jnp.take_along_axis(positions, last, axis=1) + 1


def rope(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate feature pairs (i, i + size/2) of each head [batch, length, heads, head_dim]."""
    return jax.lax.platform_dependent(x, *rotation, tpu=_rotate_by_product, default=_rotate_halves)


def _rotate_halves(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def _rotate_by_product(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """The same, with the halves exchanged by a matrix of 0 and ±1: halves of a head are halves of
    a vector register, which XLA would move one by one."""
    half = cos.shape[-1]
    index = np.arange(half)
    exchange = np.zeros((x.shape[-1],) * 2)
    exchange[index + half, index] = -1
    exchange[index, index + half] = 1
    passed = [(0, 0)] * (x.ndim - 1) + [(0, x.shape[-1] - 2 * half)]
    cos = jnp.pad(jnp.concatenate([cos, cos], axis=-1), passed, constant_values=1)
    sin = jnp.pad(jnp.concatenate([sin, sin], axis=-1), passed)
    exchanged = jnp.matmul(x, jnp.asarray(exchange, x.dtype), precision="highest")
    return x * cos + exchanged * sin


def sinusoidal(
    positions: jax.Array, d_model: int, layout: Literal["interleaved", "halves"] = "interleaved"
) -> jax.Array:
    """sin and cos of position · ω_i: [batch, length] → [batch, length, d_model].

    `interleaved`: (sin, cos) pair by pair, with ω_i = 10000^{−2i/d_model} (Vaswani et al., 2017,
    arXiv:1706.03762, section 3.5). `halves`: all sines, then all cosines, with
    ω_i = 10000^{−i/(d_model/2 − 1)} (Whisper: Radford et al., 2022, arXiv:2212.04356).
    """
    powers = np.arange(0, d_model, 2) / (d_model if layout == "interleaved" else d_model - 2)
    frequencies = jnp.asarray(10000.0**-powers, jnp.float32)
    phases = positions[..., None].astype(jnp.float32) * frequencies
    both = (jnp.sin(phases), jnp.cos(phases))
    if layout == "halves":
        return jnp.concatenate(both, axis=-1)
    return jnp.stack(both, axis=-1).reshape(*positions.shape, -1)[..., :d_model]


def sinusoidal_on_grid(grid: Grid, d_model: int) -> np.ndarray:
    """[sin x·ω, cos x·ω, sin y·ω, cos y·ω] with ω_i = 10000^{−i/(d_model/4 − 1)}, for column x and
    row y of every patch: [height · width, d_model]. Source: Beyer et al., 2022, arXiv:2205.01580.
    """
    frequencies = 10000.0 ** -(np.arange(d_model // 4) / (d_model // 4 - 1))
    y, x = np.mgrid[: grid.height, : grid.width].reshape(2, -1, 1)
    return np.concatenate([f(place * frequencies) for place in (x, y) for f in (np.sin, np.cos)], 1)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Every head's slope [heads]: 2^{−8h/n}, or the paper's rule if n is not a power of two."""

    def power_of_two(count: int) -> np.ndarray:
        return 2.0 ** (-8.0 * np.arange(1, count + 1) / count)

    below = 2 ** math.floor(math.log2(num_heads))
    extra = power_of_two(2 * below)[0::2][: num_heads - below]
    return np.concatenate([power_of_two(below), extra])
