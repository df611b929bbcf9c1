"""A group of layers that all tokens pass several times (Universal Transformer: Dehghani et al.,
2018, arXiv:1807.03819; Huginn: Geiping et al., 2025, arXiv:2502.05171)."""

from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from jaxformer.model.depth.halting import HaltingConfig, NoHaltingConfig
from jaxformer.model.depth.shared_layers import SharedLayersConfig
from jaxformer.schema.base import Schema

SPREAD = 0.5  # σ of Huginn's log-normal Poisson distribution


class RandomTurns(Schema):
    """r = min(most, 1 + Poisson(e^τ)), τ normal with mean ln(mean − 1) − σ²/2 and σ = 1/2, so that
    `mean` is that of r before it is cut off (arXiv:2502.05171, section 3.3)."""

    mean: Annotated[float, Field(gt=1.0)] = Field(
        description="turns on average, and, rounded, outside of training"
    )
    most: PositiveInt = Field(description="turns at most")

    def draw(self, key: jax.Array) -> jax.Array:
        """A number of turns, []."""
        of_rate, of_count = jax.random.split(key)
        centre = jnp.log(self.mean - 1) - SPREAD**2 / 2
        rate = jnp.exp(centre + SPREAD * jax.random.normal(of_rate, (), jnp.float32))
        return jnp.minimum(1 + jax.random.poisson(of_count, rate, dtype=jnp.int32), self.most)


class LoopConfig(SharedLayersConfig):
    """The first `before` layers once, those between as a shared group `turns` times, and the last
    `after` layers once. `num_layers` counts each of them once, and `pattern` applies to them from
    the bottom up."""

    kind: Literal["loop"] = "loop"
    decoder = "one token after another, until the token leaves the loop"
    example: ClassVar[dict[str, Any]] = {"turns": 3}
    keys = ("depth",)
    before: NonNegativeInt = Field(0, description="layers below the loop")
    after: NonNegativeInt = Field(0, description="layers above the loop")
    turns: PositiveInt | RandomTurns = Field(
        description="how often the layers between are passed, or {mean, most} for a random number "
        "in every training step"
    )
    inject: Literal["none", "add", "concat"] = Field(
        "none",
        description="how every turn reads the loop's input again: added to the state, or beside it "
        "through a matrix",
    )
    noise: NonNegativeFloat = Field(
        0.0,
        description="the loop starts from noise of this standard deviation, and from zero outside "
        "of training; 0 starts from the loop's input",
    )
    backward: PositiveInt | None = Field(
        None, description="the gradient flows through so many last turns alone; null for all"
    )
    halting: HaltingConfig = Field(NoHaltingConfig(), description="when tokens leave the loop")

    @property
    def most_turns(self) -> int:
        return self.turns.most if isinstance(self.turns, RandomTurns) else self.turns

    @property
    def usual_turns(self) -> int:
        """Outside of training."""
        if isinstance(self.turns, RandomTurns):
            return min(self.turns.most, int(self.turns.mean + 0.5))
        return self.turns

    @property
    def halts(self) -> bool:
        return not isinstance(self.halting, NoHaltingConfig)

    @property
    def weighs_losses(self) -> bool:
        return self.halting.weighs_losses

    @model_validator(mode="after")
    def _options_fit(self) -> "LoopConfig":
        if isinstance(self.turns, RandomTurns) and self.turns.most < self.turns.mean:
            raise ValueError(
                f"turns.most {self.turns.most} is below turns.mean {self.turns.mean:g}; raise it"
            )
        if self.backward is not None and self.backward > self.most_turns:
            raise ValueError(
                f"backward {self.backward} is above the {self.most_turns} turns; allowed: up to "
                f"{self.most_turns}, or null for all"
            )
        if self.noise and self.inject == "none":
            raise ValueError(
                f"noise {self.noise:g} with inject none: nothing of the input would enter the "
                f"loop; give inject: add or concat"
            )
        cut = self.backward is not None and self.backward < self.most_turns
        if cut and self.inject == "none":
            raise ValueError(
                f"backward {self.backward} with inject none: no gradient would reach what is below "
                f"the loop; give inject: add or concat"
            )
        return self

    @model_validator(mode="after")
    def _halting_fits(self) -> "LoopConfig":
        kind = self.halting.kind
        if not self.halts:
            return self
        if isinstance(self.turns, RandomTurns):
            raise ValueError(
                f"halting {kind} with random turns: tokens decide how many they make; give one "
                f"number of turns, the most"
            )
        if self.backward is not None:
            raise ValueError(
                f"halting {kind} with backward {self.backward}: the gradient flows through all "
                f"turns; leave backward out"
            )
        if self.halting.weighs_losses and self.after:
            raise ValueError(
                f"halting {kind} with after {self.after}: the outputs read the state after every "
                f"turn; allowed: after 0, or halting act"
            )
        return self
