"""The caches of a loop: its layers have some for every turn."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxformer.model.depth.loop import LoopConfig
from jaxformer.model.depth.shared_layers import SharedLayers
from jaxformer.model.mixers import Cache


class LoopCaches(SharedLayers):
    """The caches of the turns of `shared` are `turn_0`, `turn_1`, … in the `separate` layout,
    otherwise stacked along the first axis of `turns`."""

    config: LoopConfig

    @nn.nowrap
    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> dict[str, Cache]:
        caches: dict[str, Cache] = {}
        turns = self.config.usual_turns
        for name in self.numbers:
            empty = self._stack(name, parent=None).init_cache(batch, max_length, dtype)
            if name != "shared":
                caches[name] = empty
            elif self.layout == "separate":
                caches |= {f"turn_{number}": empty for number in range(turns)}
            else:
                caches["turns"] = jax.tree.map(
                    lambda leaf: jnp.broadcast_to(leaf, (turns, *leaf.shape)), empty
                )
        return caches

    takes_back = True

    @nn.nowrap
    def take_back(self, kept: dict[str, Any], counts: jax.Array) -> dict[str, Cache]:
        return self._of_stacks(lambda stack, own: stack.take_back(own, counts), kept)

    @nn.nowrap
    def undo(
        self, longer: dict[str, Cache], before: dict[str, Cache], counts: jax.Array
    ) -> dict[str, Cache]:
        return self._of_stacks(lambda stack, *own: stack.undo(*own, counts), longer, before)

    @nn.nowrap
    def _of_stacks(
        self, function: Callable[..., Cache], *every: dict[str, Any]
    ) -> dict[str, Cache]:
        """`function` of every part's stack and its caches, one of each in `every`, turn by turn."""
        found = {}
        for name in every[0]:
            part = name if name in ("before", "after") else "shared"
            of_part = partial(function, self._stack(part, parent=None))
            caches = [each[name] for each in every]
            found[name] = (jax.vmap(of_part) if name == "turns" else of_part)(*caches)
        return found
