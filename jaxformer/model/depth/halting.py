"""When a token leaves a loop: adaptive computation time, PonderNet, and Ouro's exit distribution.

After turn n, a gate reads the token's state h_n: λ_n = σ(w · h_n + b).
"""

import math
from typing import Annotated, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import Field, NonNegativeFloat

from jaxformer.schema.kinds import Kind

HALTINGS: list[type["HaltingConfig"]] = []  # filled below


class HaltingConfig(Kind):
    """When tokens leave a loop; `kind` names it."""

    registry = HALTINGS
    # Whether training weighs the losses after all turns, rather than letting tokens leave.
    weighs_losses: ClassVar[bool] = False

    def leave(self, logits: jax.Array, gone: jax.Array, is_last: jax.Array) -> "Departure":
        """What a turn does with the tokens that were still in the loop.

        Args:
            logits: [batch, length], the gate's, of the states after the turn.
            gone: [batch, length], the probability of having left before; 0 at first.
            is_last: [], whether all must leave.
        """
        raise NotImplementedError


class Departure(NamedTuple):
    """Of tokens [batch, length] after a turn."""

    weight: jax.Array  # of the state after this turn in the output
    gone: jax.Array  # the probability of having left by now
    leaves: jax.Array  # bool


class NoHaltingConfig(HaltingConfig):
    """Every token makes all turns."""

    kind: Literal["none"] = "none"


class ACTConfig(HaltingConfig):
    """Adaptive computation time, as in the Universal Transformer (Dehghani et al., 2018,
    arXiv:1807.03819; Graves, 2016, arXiv:1603.08983).

    A token leaves at the first turn N where λ_1 + … + λ_N ≥ 1 − ε, or at the last. The output is
    Σ_{n<N} λ_n h_n + R h_N with the remainder R = 1 − Σ_{n<N} λ_n, in training as in decoding, and
    cost · (N + R) is added to the token's loss.
    """

    kind: Literal["act"] = "act"
    epsilon: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.01, description="a token leaves when its probabilities reach 1 − epsilon"
    )
    cost: NonNegativeFloat = Field(
        0.01, description="τ, the loss of every turn and of the remainder, in nats"
    )

    def leave(self, logits: jax.Array, gone: jax.Array, is_last: jax.Array) -> Departure:
        total = gone + jax.nn.sigmoid(logits)
        leaves = (total >= 1 - self.epsilon) | is_last
        return Departure(jnp.where(leaves, 1 - gone, total - gone), total, leaves)


class WeighedHaltingConfig(HaltingConfig):
    """p_n = λ_n Π_{j<n} (1 − λ_j), with what is left at the last turn; training minimizes
    Σ_n p_n L_n and a regulariser of p, decoding leaves at the first turn where
    p_1 + … + p_n ≥ threshold."""

    weighs_losses = True

    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="outside of training, a token leaves when its p add up to this"
    )

    def leave(self, logits: jax.Array, gone: jax.Array, is_last: jax.Array) -> Departure:
        total = gone + (1 - gone) * jax.nn.sigmoid(logits)
        leaves = (total >= self.threshold) | is_last
        return Departure(leaves.astype(total.dtype), total, leaves)

    def regulariser(self, log_p: jax.Array) -> jax.Array:
        """The loss of every token's distribution over the turns: [turns, ...] → [...]."""
        raise NotImplementedError


class PonderConfig(WeighedHaltingConfig):
    """PonderNet (Banino et al., 2021, arXiv:2107.05407): the regulariser is
    weight · KL(p ‖ geometric(prior)), the geometric distribution with what is left at the last
    turn. The paper draws the turn; here a token leaves at a quantile of p."""

    kind: Literal["ponder"] = "ponder"
    prior: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.2, description="λ_p; about 1/λ_p turns are expected"
    )
    weight: NonNegativeFloat = Field(0.01, description="β of the divergence from the prior")

    def regulariser(self, log_p: jax.Array) -> jax.Array:
        prior = log_geometric(self.prior, len(log_p)).astype(log_p.dtype)
        difference = log_p - prior.reshape(-1, *[1] * (log_p.ndim - 1))
        return self.weight * jnp.sum(jnp.exp(log_p) * difference, axis=0)


class ExitDistributionConfig(WeighedHaltingConfig):
    """Ouro (Zhu et al., 2025, arXiv:2510.25741): the regulariser is − weight · entropy(p)."""

    kind: Literal["exits"] = "exits"
    weight: NonNegativeFloat = Field(0.05, description="β of the entropy")

    def regulariser(self, log_p: jax.Array) -> jax.Array:
        return self.weight * jnp.sum(jnp.exp(log_p) * log_p, axis=0)


HALTINGS += [NoHaltingConfig, ACTConfig, PonderConfig, ExitDistributionConfig]


def log_distribution(logits: jax.Array) -> jax.Array:
    """log p_n of the gate's logits [turns, ...]; the last turn takes what is left, and its own
    gate does not count."""
    stays = jnp.cumsum(jax.nn.log_sigmoid(-logits[:-1]), axis=0)  # log Π_{j≤n} (1 − λ_j)
    before = jnp.concatenate([jnp.zeros_like(logits[:1]), stays])
    leaves = jax.nn.log_sigmoid(logits[:-1])
    return before + jnp.concatenate([leaves, jnp.zeros_like(logits[:1])])


def log_geometric(rate: float, turns: int) -> jax.Array:
    """log of rate · (1 − rate)^{n−1} for n < turns, and of (1 − rate)^{turns−1} at the last."""
    stays = [n * math.log1p(-rate) for n in range(turns)]
    return jnp.array([*(each + math.log(rate) for each in stays[:-1]), stays[-1]])
