"""What the first layer reads: each token's embedding, and its position's where that is added."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.model.inputs.base import MASK, InputsConfig
from jaxformer.model.inputs.shared_tokens import SharedTokens, look_up
from jaxformer.model.rows import RowInfo


class TokensConfig(InputsConfig):
    """Embeddings of token ids."""

    kind: Literal["tokens"] = "tokens"


class Tokens(SharedTokens):
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
        super().setup()

    def look_up(self, tokens: jax.Array) -> jax.Array:
        """scale · E[token_t]"""
        d_model, dtype = self.dims.d_model, self.dims.dtype
        x = look_up(self.embedding, "vocab", tokens).astype(dtype)
        if self.config.mask:
            x = jnp.where((tokens == MASK)[..., None], self.mask_embedding.astype(dtype), x)
        if self.scale:
            x *= jnp.asarray(math.sqrt(d_model) if self.scale is True else self.scale, dtype)
        return x

    def summed(self, tokens: jax.Array, rows: RowInfo) -> jax.Array:
        return self.placed(self.look_up(tokens), rows.positions)

    def table(self) -> jax.Array:
        return self.embedding
