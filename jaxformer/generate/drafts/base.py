"""The contract of a draft."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from jaxformer.generate.sampling import Sampling

DraftState = Any  # a pytree of arrays, each draft's own


class Weights(NamedTuple):
    """The parameters that a program reads, laid out for decoding."""

    target: Any
    draft: Any  # the draft's own, None if it has none


class Turn(NamedTuple):
    """What a draft continues."""

    token: jax.Array  # [batch], the newest, not yet in any cache
    position: jax.Array  # [batch], its place
    cache: Any  # the target's, of all tokens before it
    key: jax.Array


class Proposal(NamedTuple):
    """What a draft says, and what it leaves behind."""

    tokens: jax.Array  # [batch, γ], int32
    probabilities: jax.Array | None  # [batch, γ, vocab], their laws; None if it is certain
    state: DraftState
    cache: Any  # the target's cache, of the same tokens as it was given


class Verified(NamedTuple):
    """What the target made of a proposal."""

    tokens: jax.Array  # [batch, γ + 1], the newest token and those proposed
    position: jax.Array  # [batch], the place of the first
    hidden: jax.Array  # [batch, γ + 1, d_model], the target's states, as `LanguageModel.trunk`
    counts: jax.Array  # [batch], how many of `tokens` stay; 0 in rows that have ended


@dataclass(frozen=True)
class Draft:
    """Proposes the tokens that a target verifies. It has no arrays of its own, so that it can be a
    part of what a compiled program is known by: those are `Weights.draft` and its state.

    All methods run inside the compiled programs. The state holds every token that the target's
    cache holds: those before the newest.
    """

    @property
    def most(self) -> int | None:
        """How many tokens it can propose at once; None for any number."""
        return None

    def taking_back(self, count: int) -> "Draft":
        """The draft with caches of which `count` tokens can be taken back."""
        return self

    def cost(self, weights: Weights) -> float:
        """What proposing a token takes, as a share of a step of the target."""
        return 0.0

    def start(self, weights: Weights, batch: int, max_length: int) -> DraftState:
        """The state before the prompts."""
        return ()

    def read(
        self,
        weights: Weights,
        state: DraftState,
        tokens: jax.Array,
        offsets: jax.Array,
        hidden: jax.Array,
    ) -> DraftState:
        """The state after the next tokens [batch, n] of the prompts.

        Args:
            offsets: [batch, n], their positions; negative for the padding before a prompt.
            hidden: [batch, n, d_model], the target's states, as `LanguageModel.trunk`.
        """
        return state

    def propose(
        self, weights: Weights, state: DraftState, turn: Turn, count: int, sampling: Sampling
    ) -> Proposal:
        """`count` tokens after the newest, drawn as `sampling` says, which the target obeys too."""
        raise NotImplementedError

    def settle(self, weights: Weights, state: DraftState, verified: Verified) -> DraftState:
        """The state of a proposal after the target's verdict: with the tokens that stay."""
        return state
