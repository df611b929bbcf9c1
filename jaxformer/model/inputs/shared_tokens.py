"""An encoder's input that shares its decoder's table of embeddings (Vaswani et al., 2017,
arXiv:1706.03762)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.model.inputs.base import Inputs, InputsConfig
from jaxformer.model.positions import (
    LearnedPositionsConfig,
    PositionsUnion,
    SinusoidalPositionsConfig,
    sinusoidal,
)
from jaxformer.model.rows import RowInfo
from jaxformer.ops import shards


class SharedTokensConfig(InputsConfig):
    """Embeddings of token ids from the table of the decoder, for its encoder alone."""

    kind: Literal["shared_tokens"] = "shared_tokens"
    shows_tokens = False
    has_table = False

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        if self.mask:
            raise ValueError(
                "inputs.mask is true, but shared_tokens have no table of their own; leave it out"
            )


class SharedTokens(Inputs):
    """x_t = e_t, plus P[position_t] for learned and sinusoidal positions, of embeddings e."""

    config: InputsConfig

    def setup(self) -> None:
        super().setup()
        dims = self.dims
        if isinstance(self.positions, LearnedPositionsConfig):
            std = dims.d_model**-0.5 if dims.init.std == "fan_in" else dims.init.std
            self.position_embedding = self.param(
                "position_embedding",
                nn.with_logical_partitioning(nn.initializers.normal(std), ("length", "d_model")),
                (self.positions.max_length, dims.d_model),
                jnp.float32,
            )

    def summed(self, tokens: jax.Array, rows: RowInfo) -> jax.Array:
        """Embeddings [batch, length, d_model] → the same shape."""
        return self.placed(tokens, rows.positions)

    def placed(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """x [batch, length, d_model] with what positions add to it."""
        d_model, dtype = self.dims.d_model, self.dims.dtype
        if isinstance(self.positions, LearnedPositionsConfig):
            x += look_up(self.position_embedding, "length", positions).astype(dtype)
        elif isinstance(self.positions, SinusoidalPositionsConfig):
            x += sinusoidal(positions, d_model, self.positions.layout).astype(dtype)
        return x

    @nn.nowrap
    def rows_of(self, tokens: jax.Array) -> RowInfo:
        return super().rows_of(jnp.zeros(tokens.shape[:2], jnp.int32))


def look_up(table: jax.Array, axis: str, ids: jax.Array) -> jax.Array:
    """Rows of table [axis, d_model]; ids beyond its ends are those of the ends."""
    if shards.count() > 1 and jax.sharding.get_abstract_mesh().shape.get("tensor", 1) > 1:
        # XLA aborts here on a table whose columns are split, on a mesh of fsdp, tensor and context.
        table = nn.with_logical_constraint(table, (axis, None))
    return table.at[ids].get(mode="clip")
