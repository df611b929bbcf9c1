"""What the first layer reads: each token's embedding, and its position's where that is added."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.model.inputs.base import MASK, Inputs, InputsConfig
from jaxformer.model.positions import (
    LearnedPositionsConfig,
    SinusoidalPositionsConfig,
    sinusoidal,
)
from jaxformer.model.rows import RowInfo
from jaxformer.ops import shards


class TokensConfig(InputsConfig):
    """Embeddings of token ids."""

    kind: Literal["tokens"] = "tokens"


class Tokens(Inputs):
    """x_t = scale · E[token_t], plus P[position_t] for learned and sinusoidal positions; where
    token_t is MASK, a learned vector stands for E[token_t]."""

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
        if self.config.mask:
            self.mask_embedding = self.param(
                "mask_embedding",
                nn.with_logical_partitioning(nn.initializers.normal(std), ("d_model",)),
                (dims.d_model,),
                jnp.float32,
            )
        if isinstance(self.positions, LearnedPositionsConfig):
            self.position_embedding = self.param(
                "position_embedding",
                nn.with_logical_partitioning(nn.initializers.normal(std), ("length", "d_model")),
                (self.positions.max_length, dims.d_model),
                jnp.float32,
            )

    def embed(self, tokens: jax.Array, rows: RowInfo) -> jax.Array:
        d_model, dtype, positions = self.dims.d_model, self.dims.dtype, rows.positions
        x = look_up(self.embedding, "vocab", tokens).astype(dtype)
        if self.config.mask:
            x = jnp.where((tokens == MASK)[..., None], self.mask_embedding.astype(dtype), x)
        if self.scale:
            x *= jnp.asarray(math.sqrt(d_model) if self.scale is True else self.scale, dtype)
        if isinstance(self.positions, LearnedPositionsConfig):
            x += look_up(self.position_embedding, "length", positions).astype(dtype)
        elif isinstance(self.positions, SinusoidalPositionsConfig):
            x += sinusoidal(positions, d_model).astype(dtype)
        return x

    def table(self) -> jax.Array:
        return self.embedding


def look_up(table: jax.Array, axis: str, ids: jax.Array) -> jax.Array:
    """Rows of table [axis, d_model]; ids beyond its ends are those of the ends."""
    if shards.count() > 1 and jax.sharding.get_abstract_mesh().shape.get("tensor", 1) > 1:
        # XLA aborts here on a table whose columns are split, on a mesh of fsdp, tensor and context.
        table = nn.with_logical_constraint(table, (axis, None))
    return table.at[ids].get(mode="clip")
