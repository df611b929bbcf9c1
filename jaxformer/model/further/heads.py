"""Multi-token prediction with heads beside each other (Gloeckle et al., 2024, arXiv:2404.19737)."""

from typing import Literal

import jax

from jaxformer.model.further.base import Further, FurtherConfig
from jaxformer.model.mixers import Cache
from jaxformer.model.rows import LayerAux, RowInfo


class HeadsConfig(FurtherConfig):
    """Heads that read the last layer's output, each a layer, the final norm and the output."""

    kind: Literal["heads"] = "heads"
    chained = False


class Heads(Further):
    """p(x_{t+1+k} | x_{≤t}) = softmax(W norm(layer_k(h_t))), with h the last layer's output, and
    norm and W those of the next token."""

    config: HeadsConfig

    def setup(self) -> None:
        self.heads = [self._block(f"head_{k + 1}") for k in range(self.config.count)]

    def __call__(
        self, k: int, x: jax.Array, embeddings: jax.Array | None, rows: RowInfo, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None, LayerAux]:
        return self._run(self.heads[k - 1], x, rows, cache)
