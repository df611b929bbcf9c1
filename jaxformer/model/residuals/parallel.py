"""The parallel block: mixer and FFN of a layer read the same, as in GPT-J and PaLM (Chowdhery et
al., 2022, arXiv:2204.02311)."""

from collections.abc import Sequence
from typing import Literal

import jax

from jaxformer.model.layer import Layer
from jaxformer.model.norms import NormConfig
from jaxformer.model.residuals.base import ResidualConfig
from jaxformer.model.residuals.plain import OneStream


class ParallelBlockConfig(ResidualConfig):
    """The mixer and the FFN of a layer read the same normalised stream, and both are added to it
    (PaLM, arXiv:2204.02311)."""

    kind: Literal["parallel"] = "parallel"
    reads_bare = False

    def check(self, d_model: int, norm: NormConfig, layers: Sequence[Layer], depth: str) -> None:
        self.check_additive(norm)


class ParallelBlock(OneStream):
    """x + mixer(N(x)) + ffn(N(x)), with one norm N."""

    config: ParallelBlockConfig

    def read(self, stream: jax.Array, sublayer: str) -> jax.Array:
        if "read" not in self.made:
            self.made["read"] = super().read(stream, sublayer)
        read: jax.Array = self.made["read"]
        return read
