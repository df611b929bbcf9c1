"""Learned positions of pictures, for pictures of another size (Dosovitskiy et al., 2020,
arXiv:2010.11929, section 3.2)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.model.config import ModelConfig
from jaxformer.model.inputs import PatchesConfig
from jaxformer.model.positions import LearnedPositionsConfig
from jaxformer.model.trunk_config import TrunkConfig

TABLE = "position_embedding"


class Resizing(NamedTuple):
    """The patches of a picture, [height, width], before and now, behind `first` other places."""

    before: tuple[int, int]
    now: tuple[int, int]
    first: int

    def __str__(self) -> str:
        before, now = (" × ".join(map(str, sides)) for sides in (self.before, self.now))
        return f"{before} patches to {now}"

    def of(self, table: jax.Array) -> jax.Array:
        """[first + height · width, d_model], before → now: the vectors of other places as they are,
        and those of patches interpolated cubically between their middles, over all patches that a
        larger one covers."""
        others, patches = jnp.split(table, [self.first])
        grid = patches.reshape(*self.before, -1)
        shape = (*self.now, grid.shape[-1])
        resized = jax.image.resize(grid, shape, "cubic", antialias=True)
        return jnp.concatenate([others, resized.reshape(-1, shape[-1])])


def resizings(before: ModelConfig, now: ModelConfig) -> dict[str, Resizing]:
    """The tables that must be resized so that a model begins with another's weights, by path."""
    found = {}
    for prefix, one, other in (("", before, now), ("encoder/", before.encoder, now.encoder)):
        if one is None or other is None:
            continue
        of_one, of_other = _places(one), _places(other)
        if of_one is None or of_other is None or of_one[1] != of_other[1]:
            continue
        if of_one != of_other:
            found[prefix + TABLE] = Resizing(of_one[0], of_other[0], of_one[1])
    return found


def _places(trunk: TrunkConfig) -> tuple[tuple[int, int], int] | None:
    """The patches that have a learned position, and how many places before them have one; None if
    there are none, or if the table has more places."""
    inputs, positions = trunk.inputs, trunk.positions
    if not (isinstance(inputs, PatchesConfig) and isinstance(positions, LearnedPositionsConfig)):
        return None
    first = int(inputs.class_token)
    if positions.max_length != first + inputs.length:
        return None
    return (inputs.grid.height, inputs.grid.width), first


def resized(found: Mapping[str, Resizing], leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by path, those that are `found` resized."""
    return {path: found[path].of(x) if path in found else x for path, x in leaves.items()}
