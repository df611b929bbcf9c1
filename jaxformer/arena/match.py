"""Sizing contestants to equal budgets, by solving for one dimension."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax

from jaxformer.arena.config import ArenaConfig, MatchConfig
from jaxformer.config import Config
from jaxformer.data.vocabulary import tokenizer_of
from jaxformer.errors import UserError
from jaxformer.model.accounting import (
    abstract_parameters,
    cache_bytes,
    count_parameters,
)
from jaxformer.model.language_model import build_model

# Not counted as a contestant's size.
OUTSIDE = ("embedding", "head", "mask_embedding", "position_embedding")
LARGEST = 1 << 20


@dataclass(frozen=True)
class Sizes:
    """What a contestant costs on a task, matched or not."""

    parameters: int  # without embeddings and head
    all_parameters: int
    training_flops: float  # of one token
    state_bytes: int  # of one sequence at the context of the match

    def of(self, budget: str) -> float:
        return float(getattr(self, budget))


def sizes(config: Config, context: int) -> Sizes:
    """Parameters, FLOPs and state of a configuration; nothing is allocated."""
    vocab_size = tokenizer_of(config.data).vocab_size
    model = build_model(config.model, vocab_size=vocab_size)
    shapes = abstract_parameters(model)
    outside = {name: tree for name, tree in shapes.items() if name in OUTSIDE}
    parameters = count_parameters(model)
    return Sizes(
        parameters=parameters - sum(leaf.size for leaf in jax.tree.leaves(outside)),
        all_parameters=parameters,
        training_flops=3 * config.train.objective.flops(model, config.data.sequence_length),
        state_bytes=cache_bytes(model, context),
    )


def solve(cost: Callable[[int], float], target: float, multiple_of: int, tolerance: float) -> int:
    """The multiple n of `multiple_of` for which cost(n), which rises with n, is nearest `target`.

    A bracket is narrowed at the place where a straight line through its ends meets the target,
    which for costs that are nearly linear takes a handful of evaluations.

    Raises:
        ValueError: no n is within `tolerance` of it; the message has the nearest two.
    """
    costs: dict[int, float] = {}

    def at(units: int) -> float:
        if units not in costs:
            costs[units] = cost(units * multiple_of)
        return costs[units]

    low, high = 1, 2
    while at(high) < target and high * multiple_of < LARGEST:
        low, high = high, 4 * high
    while high - low > 1:
        slope = (at(high) - at(low)) / (high - low)
        guess = low + round((target - at(low)) / slope) if slope > 0 else (low + high) // 2
        middle = min(max(guess, low + 1), high - 1)
        if at(middle) <= target:
            low = middle
        else:
            high = middle
        if abs(at(middle) - target) <= tolerance * target / 100:
            return middle * multiple_of
    best = min((low, high), key=lambda units: abs(at(units) - target))
    if abs(at(best) - target) > tolerance * target:
        nearest = ", ".join(f"{n * multiple_of} gives {_shown(at(n))}" for n in (low, high))
        raise ValueError(f"nothing within {tolerance:.1%} of {_shown(target)}: {nearest}")
    return best * multiple_of


def _shown(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 1000 else f"{cost:.3g}"


@dataclass(frozen=True)
class Matched:
    """What was chosen for every contestant on every task, by (task, contestant)."""

    solved: Mapping[tuple[str, str], dict[str, int]]
    sizes: Mapping[tuple[str, str], Sizes]

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {"task": task, "contestant": contestant, "solved": solved, "sizes": asdict(own)}
            for (task, contestant), solved in self.solved.items()
            for own in [self.sizes[task, contestant]]
        ]

    @classmethod
    def from_json(cls, rows: list[dict[str, Any]]) -> "Matched":
        keys = [(row["task"], row["contestant"]) for row in rows]
        return cls(
            {key: row["solved"] for key, row in zip(keys, rows, strict=True)},
            {key: Sizes(**row["sizes"]) for key, row in zip(keys, rows, strict=True)},
        )


def match(
    arena: ArenaConfig,
    seconds_per_step: Callable[[Config], float],
    known: Matched = Matched({}, {}),
) -> Matched:
    """Size every contestant to the baseline's budget, task by task; the baseline stays as it is.

    Args:
        seconds_per_step: measures a step, for the budget `seconds` alone.
        known: what was chosen before, which is kept.

    Raises:
        UserError: a budget that cannot be met within the tolerance, with the nearest.
    """
    solved: dict[tuple[str, str], dict[str, int]] = {}
    costs: dict[tuple[str, str], Sizes] = {}
    context = arena.match.context if arena.match else MatchConfig().context
    for task in arena.tasks:
        baseline = arena.config(task, arena.baseline, {})
        for contestant in arena.contestants:
            key = task, contestant
            if key in known.solved:
                solved[key], costs[key] = known.solved[key], known.sizes[key]
                continue
            chosen = {}
            if arena.match is not None and contestant != arena.baseline:
                chosen = {
                    arena.match.solve: _solved(arena, arena.match, baseline, key, seconds_per_step)
                }
            solved[key] = chosen
            costs[key] = sizes(arena.config(task, contestant, chosen), context)
    return Matched(solved, costs)


def _solved(
    arena: ArenaConfig,
    match: MatchConfig,
    baseline: Config,
    key: tuple[str, str],
    seconds_per_step: Callable[[Config], float],
) -> int:
    task, contestant = key

    def config(size: int) -> Config:
        return arena.config(task, contestant, {match.solve: size})

    if match.budget == "seconds":
        if match.solve != "train.steps":
            raise UserError(
                f"match.budget seconds is met by more or fewer steps: give "
                f"match.solve=train.steps (it is {match.solve})"
            )
        target = seconds_per_step(baseline) * baseline.train.steps
        per_step = seconds_per_step(config(baseline.train.steps))
    else:
        target = sizes(baseline, match.context).of(match.budget)

    def cost(size: int) -> float:
        if match.budget == "seconds":
            return size * per_step
        return sizes(config(size), match.context).of(match.budget)

    try:
        return solve(cost, target, match.multiple_of, match.tolerance)
    except ValueError as error:
        raise UserError(
            f"contestant {contestant} on {task} cannot match the {match.budget} of "
            f"{arena.baseline} by {match.solve} in steps of {match.multiple_of}: {error}; change "
            f"its other dimensions, match.multiple_of or match.tolerance"
        ) from None
