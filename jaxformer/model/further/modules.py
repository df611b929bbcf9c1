"""Multi-token prediction with a chain of modules (DeepSeek-V3, 2024, arXiv:2412.19437,
section 2.2)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from jaxformer.model.further.base import Further, FurtherConfig
from jaxformer.model.mixers import Cache
from jaxformer.model.norms import Norm, NormConfig
from jaxformer.model.projections import Projection
from jaxformer.model.rows import LayerAux, RowInfo


class ModulesConfig(FurtherConfig):
    """A chain of modules, each of which reads the one before it and one token more."""

    kind: Literal["modules"] = "modules"
    chained = True

    own_norms: bool = Field(
        False,
        description="each module ends with a norm of its own, not with the model's final norm, and "
        "reads normalised states, as in the published weights of DeepSeek-V3",
    )


class Modules(Further):
    """h_k(t) = layer_k(M_k [RMSNorm(h_{k−1}(t)); RMSNorm(E[x_{t+k}])]) with h_0 the last layer's
    output, and p(x_{t+1+k} | x_{≤t+k}) = softmax(W norm(h_k(t))) (equations 21 to 23), where the
    embedding E, the final norm and W are those of the next token.

    With `own_norms`, h_k = norm_k(layer_k(…)), h_0 is normalised by the final norm, and
    p = softmax(W h_k(t))."""

    config: ModulesConfig

    def setup(self) -> None:
        numbers = range(1, self.config.count + 1)
        d_model, norm = self.dims.d_model, NormConfig(eps=self.norm.eps)
        self.hidden_norms = [Norm(norm, name=f"module_{k}_hidden_norm") for k in numbers]
        self.embedding_norms = [Norm(norm, name=f"module_{k}_embedding_norm") for k in numbers]
        self.projections = [
            Projection(
                (d_model,),
                ("d_hidden", "d_model"),
                self.dims.init.matrix(2 * d_model),
                name=f"module_{k}_projection",
            )
            for k in numbers
        ]
        self.blocks = [self._block(f"module_{k}") for k in numbers]
        if self.own_norms:
            self.norms = [Norm(norm, name=f"module_{k}_norm") for k in numbers]

    @property
    def own_norms(self) -> bool:
        return self.config.own_norms

    def __call__(
        self, k: int, x: jax.Array, embeddings: jax.Array | None, rows: RowInfo, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None, LayerAux]:
        assert embeddings is not None  # they are chained
        both = (self.hidden_norms[k - 1](x), self.embedding_norms[k - 1](embeddings))
        x = self.projections[k - 1](jnp.concatenate(both, axis=-1))
        y, cache, aux = self._run(self.blocks[k - 1], x, rows, cache)
        return self.norms[k - 1](y) if self.own_norms else y, cache, aux

    @nn.nowrap
    def own_flops(self) -> float:
        return 4.0 * self.dims.d_model**2
