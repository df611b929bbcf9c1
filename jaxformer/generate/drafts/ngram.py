"""Prompt lookup: what followed when the row's last tokens occurred before (Saxena, 2023,
github.com/apoorvumang/prompt-lookup-decoding). It needs no model, and pays where a continuation
repeats what stands before it."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.generate.drafts.base import Draft, DraftState, Proposal, Turn, Verified, Weights
from jaxformer.generate.sampling import Sampling
from jaxformer.ops.attention import appended


class Tokens(NamedTuple):
    """The tokens of the rows so far."""

    tokens: jax.Array  # [batch, max_length], −1 for padding before a prompt
    length: jax.Array  # [batch], of the row with its padding


@dataclass(frozen=True)
class NGram(Draft):
    """Proposes what followed the latest earlier place where the longest part, up to `longest`
    tokens, of the row's end stands. If the row ends before enough tokens followed, they repeat."""

    longest: int = 4

    def start(self, weights: Weights, batch: int, max_length: int) -> DraftState:
        empty = jnp.full((batch, max_length), -1, jnp.int32)
        return Tokens(empty, jnp.zeros(batch, jnp.int32))

    def read(
        self,
        weights: Weights,
        state: DraftState,
        tokens: jax.Array,
        offsets: jax.Array,
        hidden: jax.Array,
    ) -> DraftState:
        row = jnp.where(offsets < 0, -1, tokens)
        longer = appended(state.tokens, row, state.length)
        return Tokens(longer, state.length + tokens.shape[1])

    def propose(
        self, weights: Weights, state: DraftState, turn: Turn, count: int, sampling: Sampling
    ) -> Proposal:
        tokens = appended(state.tokens, turn.token[:, None], state.length)
        proposed = jax.vmap(lambda row, last: self._following(row, last, count))
        return Proposal(proposed(tokens, state.length), None, state, turn.cache)

    def settle(self, weights: Weights, state: DraftState, verified: Verified) -> DraftState:
        # Those that do not stay are overwritten by what comes next.
        longer = appended(state.tokens, verified.tokens, state.length)
        return Tokens(longer, state.length + verified.counts)

    def _following(self, row: jax.Array, last: jax.Array, count: int) -> jax.Array:
        """`count` tokens after row[last], from what followed in row [max_length] before."""
        places = jnp.arange(len(row))
        matches, length = jnp.ones(len(row), bool), jnp.zeros(len(row), jnp.int32)
        for back in range(self.longest):
            same = row[jnp.maximum(places - back, 0)] == row[jnp.maximum(last - back, 0)]
            real = (places >= back) & (row[jnp.maximum(last - back, 0)] >= 0) & (last >= back)
            matches = matches & same & real
            length += matches
        best = jnp.max(jnp.where(places < last, length, -1))
        found = jnp.max(jnp.where((places < last) & (length == best), places, 0))
        period = jnp.maximum(last - found, 1)
        return jnp.maximum(row[found + 1 + jnp.arange(count) % period], 0)
