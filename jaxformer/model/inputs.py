"""What the first layer reads: each token's embedding, and its position's where that is added."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import PositiveFloat

from jaxformer.model.dims import Dims
from jaxformer.model.positions import (
    LearnedPositionsConfig,
    PositionsUnion,
    SinusoidalPositionsConfig,
    sinusoidal,
)
from jaxformer.model.rows import RowInfo
from jaxformer.schema.kinds import Kind

INPUTS: dict[type["InputsConfig"], type["Inputs"]] = {}  # filled below


class InputsConfig(Kind):
    """The options of an input; `kind` names it."""

    registry = INPUTS


class Inputs(nn.Module):
    """Turns tokens into the first layer's input.

    Its parameters lie at the top of the model's tree.
    """

    config: InputsConfig
    dims: Dims
    vocab_size: int
    positions: PositionsUnion
    scale: bool | PositiveFloat  # embeddings × √d_model, or × a number

    def __call__(
        self, tokens: jax.Array, positions: jax.Array | None, segment_ids: jax.Array | None
    ) -> tuple[jax.Array, RowInfo]:
        """tokens [batch, length] → (x [batch, length, d_model], their positions and documents).

        Args:
            positions, segment_ids: [batch, length]; one document per row where they are None.
        """
        raise NotImplementedError

    def table(self) -> jax.Array:
        """The matrix [vocab, d_model] that a tied head shares."""
        raise NotImplementedError


class TokensConfig(InputsConfig):
    """Embeddings of token ids."""

    kind: Literal["tokens"] = "tokens"


class Tokens(Inputs):
    """x_t = scale · E[token_t], plus P[position_t] for learned and sinusoidal positions."""

    config: TokensConfig

    def setup(self) -> None:
        dims = self.dims
        std = dims.d_model**-0.5 if dims.init.std == "fan_in" else dims.init.std
        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(nn.initializers.normal(std), ("vocab", "d_model")),
            (self.vocab_size, dims.d_model),
            jnp.float32,
        )
        if isinstance(self.positions, LearnedPositionsConfig):
            self.position_embedding = self.param(
                "position_embedding",
                nn.with_logical_partitioning(nn.initializers.normal(std), ("length", "d_model")),
                (self.positions.max_length, dims.d_model),
                jnp.float32,
            )

    def __call__(
        self, tokens: jax.Array, positions: jax.Array | None, segment_ids: jax.Array | None
    ) -> tuple[jax.Array, RowInfo]:
        d_model, dtype = self.dims.d_model, self.dims.dtype
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        x = self.embedding.at[tokens].get(mode="clip").astype(dtype)
        if self.scale:
            x *= jnp.asarray(math.sqrt(d_model) if self.scale is True else self.scale, dtype)
        if isinstance(self.positions, LearnedPositionsConfig):
            x += self.position_embedding.at[positions].get(mode="clip").astype(dtype)
        elif isinstance(self.positions, SinusoidalPositionsConfig):
            x += sinusoidal(positions, d_model).astype(dtype)
        return x, RowInfo(positions, segment_ids)

    def table(self) -> jax.Array:
        return self.embedding


INPUTS |= {
    TokensConfig: Tokens,
}
