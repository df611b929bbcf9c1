"""A mixer that goes both ways, made of one that goes from the first token to the last, as in Vision
Mamba (Zhu et al., 2024, arXiv:2401.09417) and Caduceus (Schiff et al., 2024, arXiv:2403.03234)."""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from jaxformer.model.dims import Dims
from jaxformer.model.mixers.base import Cache
from jaxformer.model.mixers.reordered import Reordered, ReorderedConfig
from jaxformer.model.positions import PositionsUnion, document_lengths
from jaxformer.model.projections import Projection
from jaxformer.model.rows import RowInfo
from jaxformer.ops import shards


class BidirectionalConfig(ReorderedConfig):
    kind: Literal["bidirectional"] = "bidirectional"
    merge: Literal["sum", "concat"] = Field(
        "sum",
        description="adds what both directions give (Vision Mamba, Caduceus), or projects both "
        "side by side to d_model",
    )
    shared: bool = Field(
        False, description="uses the same weights in both directions, as Caduceus does"
    )

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        if self.mixer.sees_both_ways:
            raise ValueError(
                f"{self.mixer.kind} sees tokens on both sides by itself in a model of order full; "
                f"give it without bidirectional"
            )
        super().check(d_model, positions)

    @property
    def sees_both_ways(self) -> bool:
        return True


class Bidirectional(Reordered):
    """y = m_f(x) + R m_b(R x), or y = W [m_f(x); R m_b(R x)] for merge concat,

    where m_f and m_b are causal mixers and R reverses a row, its last token first. Documents and
    padding are reversed with it, and positions count from each document's end, so that a packed
    document is reversed as if it were alone.
    """

    config: BidirectionalConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: Cache | None = None
    ) -> tuple[jax.Array, None]:
        dims = self._one_way
        forward = self.within(dims, name="forward")
        y, _ = forward(x, rows)
        if dims.grid is not None:
            dims = dataclasses.replace(dims, grid=dims.grid.reversed())
        # A module in another's scope has its weights.
        place = {"parent": forward.scope} if self.config.shared else {"name": "backward"}
        backward = self.within(dims, **place)
        z, _ = backward(shards.reverse(x), _reverse(rows))
        z = shards.reverse(z)
        if self.config.merge == "sum":
            return y + z, None
        d_model = self.dims.d_model
        output = Projection(
            (d_model,),
            ("d_hidden", "d_model"),
            self.dims.init.output_matrix(2 * d_model, self.dims.num_layers),
            name="output",
        )
        return output(jnp.concatenate([y, z], axis=-1)), None

    @property
    def _one_way(self) -> Dims:
        """The dims of the mixer within, which goes one way in any model."""
        return dataclasses.replace(self.dims, is_causal=True)

    def kernels(self, length: int) -> tuple[str, ...]:
        return self.within(self._one_way, parent=None).kernels(length)

    def flops(self, length: int) -> float:
        d_model = self.dims.d_model
        merge = d_model if self.config.merge == "sum" else 4.0 * d_model**2
        return 2 * self.within(self._one_way, parent=None).flops(length) + merge


def _reverse(rows: RowInfo) -> RowInfo:
    """The rows, last token first, with positions counted from the end of each document."""
    from_end = document_lengths(rows) - 1 - rows.positions
    return rows._replace(positions=from_end).each(shards.reverse)
