"""BERT's input: embeddings of tokens, positions and types, and a norm (Devlin et al., 2018,
arXiv:1810.04805)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, PositiveInt

from jaxformer.model.inputs.base import EMBEDDING_NORM
from jaxformer.model.inputs.tokens import Tokens, TokensConfig
from jaxformer.model.rows import RowInfo


class TypedTokensConfig(TokensConfig):
    """Embeddings of token ids and of the tokens' types, and by default a norm of their sum."""

    kind: Literal["typed_tokens"] = "typed_tokens"  # type: ignore[assignment]

    types: PositiveInt = Field(
        2,
        description="types that have an embedding, such as the two sentences of a pair; all tokens "
        "of the data are of the first",
    )
    embedding_norm: bool = Field(True, description=EMBEDDING_NORM)


class TypedTokens(Tokens):
    """norm(x_t + T[0]), with x_t of `Tokens` and the embeddings T of types."""

    config: TypedTokensConfig

    def setup(self) -> None:
        super().setup()
        dims = self.dims
        self.type_embedding = self.param(
            "type_embedding",
            nn.with_logical_partitioning(dims.init.matrix(dims.d_model), (None, "d_model")),
            (self.config.types, dims.d_model),
            jnp.float32,
        )

    def summed(self, tokens: jax.Array, rows: RowInfo) -> jax.Array:
        x = super().summed(tokens, rows)
        return x + self.type_embedding[0].astype(x.dtype)
