"""Outputs for two sides that are compared: a vector for each (CLIP, Radford et al., 2021,
arXiv:2103.00020; SigLIP, Zhai et al., 2023, arXiv:2303.15343)."""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from jaxformer.model.dims import Dims, SourceDims
from jaxformer.model.norms import unit_normalize
from jaxformer.model.outputs import OUTPUTS, Outputs, OutputsConfig
from jaxformer.model.pooling import Probe, ProbeConfig, pool
from jaxformer.model.projections import Projection
from jaxformer.model.rows import RowInfo
from jaxformer.ops.contrastive import Sides, Similarity
from jaxformer.schema.base import Schema

EPS = 1e-12  # added to a square length, so that a vector of zeros has a gradient
Name = Literal["tokens", "source"]


class SideConfig(Schema):
    """How a side becomes one vector."""

    pool: Literal["mean", "first", "last", "probe"] = Field(
        "mean",
        description="what of the last layer's output: the mean of all tokens, the first one, such "
        "as a class token, the last one, such as the end of a text, or what a probe finds",
    )
    probe: ProbeConfig | None = Field(
        None, description="for pool probe, its attention and FFN; null for others"
    )
    projection: Literal["linear", "affine", "none"] = Field(
        "linear",
        description="to the shared width: a product, one with a bias, or none if it is that wide",
    )

    @model_validator(mode="after")
    def _probe_is_for_its_pool(self) -> "SideConfig":
        if (self.pool == "probe") != (self.probe is not None):
            mend = (
                "give at least probe={ffn: {kind: gelu, d_hidden: ...}}"
                if self.probe is None
                else "leave it out, or give pool=probe"
            )
            given = "missing" if self.probe is None else "given"
            raise ValueError(f"probe is {given}, but pool is {self.pool}; {mend}")
        return self

    def check(self, name: str, d_model: int, width: int) -> None:
        """Check that it can be built on states of this width.

        Raises:
            ValueError: it cannot.
        """
        if self.projection == "none" and d_model != width:
            raise ValueError(
                f"outputs.{name}.projection is none, but outputs.width is {width} and that side is "
                f"{d_model} wide; give projection=linear, or the same width"
            )
        if self.probe is not None:
            self.probe.check(d_model)

    def flops(self, d_model: int, length: int, width: int) -> float:
        """Forward FLOPs per row of `length` tokens."""
        of_probe = 0.0 if self.probe is None else self.probe.flops(d_model, length)
        return of_probe + (0.0 if self.projection == "none" else 2.0 * d_model * width)


class ContrastiveConfig(OutputsConfig):
    """A vector of length 1 for the tokens of a row, and one for its source, both of one width."""

    kind: Literal["contrastive"] = "contrastive"
    can_be_tied = False
    of_rows = True
    reads_source = True

    width: PositiveInt = Field(description="of the vectors that are compared")
    tokens: SideConfig = Field(SideConfig(), description="how tokens become a vector")
    source: SideConfig = Field(SideConfig(), description="how the encoder's states become one")
    scale: PositiveFloat = Field(
        10.0,
        description="what products of vectors are multiplied by at first; its logarithm is "
        "learned. SigLIP begins with 10, CLIP with 1 / 0.07",
    )
    bias: float | None = Field(
        -10.0,
        description="what is added to them at first, and learned: −10 in SigLIP; null for nothing, "
        "as in CLIP",
    )

    def check(self, d_model: int, d_source: int | None) -> None:
        if d_source is None:
            raise ValueError(
                "outputs are contrastive, which compare tokens with what an encoder reads, but "
                "encoder is null; give encoder={length: ..., d_model: ..., num_layers: ..., ...}"
            )
        self.tokens.check("tokens", d_model, self.width)
        self.source.check("source", d_source, self.width)

    def flops(self, dims: Dims, vocab_size: int, length: int) -> float:
        """Without the products of vectors, of which a row has as many as there are in a batch."""
        d_source, places = _source(dims)
        of_tokens = self.tokens.flops(dims.d_model, length, self.width)
        return of_tokens + self.source.flops(d_source, places, self.width)


class Contrastive(Outputs):
    """l_ij = exp(t) u_i · v_j + b, with u_i = W_u pool(tokens_i) / ‖·‖ and v_j likewise of the
    encoder's states for source j; t and b are learned."""

    config: ContrastiveConfig

    def setup(self) -> None:
        config, dims = self.config, self.dims
        of_source = dataclasses.replace(dims, d_model=_source(dims).d_model)
        for name, side, own in (
            ("tokens", config.tokens, dims),
            ("source", config.source, of_source),
        ):
            if side.probe is not None:
                setattr(self, f"{name}_pool", Probe(side.probe, own, self.norm))
            if side.projection != "none":
                is_affine = side.projection == "affine"
                start = own.init.matrix(own.d_model)
                projection = Projection((config.width,), ("d_model", "d_out"), start, is_affine)
                setattr(self, f"{name}_projection", projection)
        self.log_scale = self._number("log_scale", math.log(config.scale))
        if config.bias is not None:
            self.logit_bias = self._number("logit_bias", config.bias)

    def _number(self, name: str, start: float) -> jax.Array:
        value = nn.with_logical_partitioning(nn.initializers.constant(start), ())
        return self.param(name, value, (), jnp.float32)

    def weights(self, table: jax.Array | None) -> Similarity:
        bias = jnp.zeros(()) if self.config.bias is None else self.logit_bias
        return Similarity(jnp.exp(self.log_scale), bias)

    def pooled(self, x: jax.Array, rows: RowInfo) -> Sides:
        assert rows.memory is not None
        return Sides(
            self.vectors("tokens", x, rows.segment_ids), self.vectors("source", *rows.memory)
        )

    def vectors(self, name: Name, x: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """A side's states [batch, length, its width] → [batch, width], of length 1, float32."""
        side: SideConfig = getattr(self.config, name)
        if side.pool == "probe":
            y = getattr(self, f"{name}_pool")(x, segment_ids)
        else:
            y = pool(side.pool, x, segment_ids)
        if side.projection != "none":
            y = getattr(self, f"{name}_projection")(y)
        return unit_normalize(y.astype(jnp.promote_types(y.dtype, jnp.float32)), EPS)

    def logits(self, weights: Similarity, x: Sides, num_tokens: int | None = None) -> jax.Array:
        """The similarity of every text to every source, scaled: [texts, sources]."""
        highest = jax.lax.Precision.HIGHEST
        return weights.scale * jnp.matmul(x.x, x.y.T, precision=highest) + weights.bias


def _source(dims: Dims) -> SourceDims:
    assert dims.source is not None  # as `ModelConfig` has checked
    return dims.source


OUTPUTS[ContrastiveConfig] = Contrastive
