"""A mixer that reads a picture in another order than row by row, as the scans of VMamba do (Liu et
al., 2024, arXiv:2401.10166)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from jaxformer.errors import UserError
from jaxformer.model.dims import Grid
from jaxformer.model.mixers.base import Cache
from jaxformer.model.mixers.reordered import Reordered, ReorderedConfig
from jaxformer.model.rows import RowInfo
from jaxformer.ops import shards

ScanOrder = Literal["columns", "snake", "column_snake"]


class ScannedConfig(ReorderedConfig):
    kind: Literal["scanned"] = "scanned"
    order: ScanOrder = Field(
        "columns",
        description="columns: one after another, each from its top; snake: rows, every second one "
        "backwards; column_snake: columns, every second one upwards",
    )

    @property
    def sees_both_ways(self) -> bool:
        return self.mixer.sees_both_ways

    @property
    def needs_grid(self) -> bool:
        return True


class Scanned(Reordered):
    """y = P⁻¹ m(P x), where P puts the tokens of a picture into the order of the scan.

    A row is one picture, without other documents or padding. Tokens before the picture, such as a
    class token, stay before it. Positions are places in the scan.
    """

    config: ScannedConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: Cache | None = None
    ) -> tuple[jax.Array, None]:
        mixer = self.within(self.dims, name="mixer")
        if self.is_initializing():  # on a row shorter than a picture
            return mixer(x, rows)[0], None
        assert self.dims.grid is not None  # as `ModelConfig` has checked
        grid, order = self.dims.grid, scan_order(self.dims.grid, self.config.order)
        if shards.count() > 1:
            raise UserError(
                f"the mixer scanned reorders whole rows, which mesh.context={shards.count()} cuts; "
                f"give mesh.context=1"
            )
        if x.shape[1] != len(order):
            raise ValueError(
                f"rows have {x.shape[1]} tokens, but a picture of {grid.height} × {grid.width} "
                f"behind {grid.before} others has {len(order)}"
            )
        tokens = None if rows.tokens is None else _take(rows.tokens, order)
        y, _ = mixer(_take(x, order), rows._replace(tokens=tokens))
        return _take(y, np.argsort(order)), None

    def kernels(self, length: int) -> tuple[str, ...]:
        return self.within(self.dims, parent=None).kernels(length)

    def flops(self, length: int) -> float:
        return self.within(self.dims, parent=None).flops(length)


def scan_order(grid: Grid, order: ScanOrder) -> np.ndarray:
    """The places in the row [length] of the tokens in the order of the scan."""
    lines = grid.before + np.arange(grid.height * grid.width).reshape(grid.height, grid.width)
    if order != "snake":
        lines = lines.T
    if order != "columns":
        lines = np.stack([line[::-1] if odd % 2 else line for odd, line in enumerate(lines)])
    places = np.concatenate([np.arange(grid.before), lines.ravel()])
    return len(places) - 1 - places[::-1] if grid.is_reversed else places


def _take(x: jax.Array, places: np.ndarray) -> jax.Array:
    """x [batch, length, ...] at `places`, each of which occurs once."""
    return jnp.take(x, places, axis=1, unique_indices=True, mode="clip")
