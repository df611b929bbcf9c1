"""States of a recurrence kept after every token of a short call, so that tokens can be taken back.

A recurrent state cannot be shortened as keys and values can: what a rejected token wrote into it
stays. So where the newest tokens may be taken back, the mixer reads a short call token by token,
while the rest of the layer still takes all tokens at once, and the state before each is kept.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxformer.model.mixers.base import Cache, Mixer
from jaxformer.model.rows import RowInfo


@struct.dataclass
class Kept:
    """The caches of a call of `length` tokens."""

    before: Any  # each array [length, batch, ...]: the cache before each token
    after: Any  # each array [batch, ...]: the cache after the last

    def taken_back(self, counts: jax.Array) -> Cache:
        """The cache before the last `counts` [batch] tokens of each row, 0 to `length`."""

        def choose(before: jax.Array, after: jax.Array) -> jax.Array:
            place = jnp.maximum(len(before) - counts, 0)  # the last place does not matter at 0
            found = before.at[place, jnp.arange(len(counts))].get(mode="clip")
            return jnp.where(counts.reshape(-1, *[1] * (after.ndim - 1)) == 0, after, found)

        return jax.tree.map(choose, self.before, self.after)


def mix(
    mixer: Mixer, x: jax.Array, rows: RowInfo, cache: Cache | None
) -> tuple[jax.Array, Cache | Kept | None]:
    """mixer(x, rows, cache); of a call of 2 to `dims.taken_back` tokens, what the mixer's
    `take_back` needs, which is `Kept` for a recurrence."""
    keeps = mixer.dims.keeps_states and not mixer.takes_back_itself
    if cache is None or not keeps or not 1 < x.shape[1] <= mixer.dims.taken_back:
        return mixer(x, rows, cache)

    def step(mixer: Mixer, cache: Cache, token: Any) -> tuple[Cache, tuple[jax.Array, Cache]]:
        x, rows = jax.tree.map(lambda array: array[:, None], token)
        y, longer = mixer(x, rows, cache)
        return longer, (y[:, 0], cache)

    # Recurrences read nothing of the rows but what belongs to single tokens.
    tokens = jax.tree.map(lambda array: jnp.moveaxis(array, 1, 0), (x, rows.of_tokens()))
    steps = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
    after, (y, before) = steps(mixer, cache, tokens)
    return jnp.moveaxis(y, 0, 1), Kept(before, after)
