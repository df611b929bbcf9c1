"""From the cells' results to the figures of a comparison."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from jaxformer.arena.cells import Cell, Result
from jaxformer.arena.config import ArenaConfig
from jaxformer.arena.match import Matched
from jaxformer.arena.scaling import describe_scaling
from jaxformer.arena.statistics import Comparison, Interval, against, interval

METRICS = ("loss", "bits_per_byte", "accuracy", "row_accuracy")
HIGHER_IS_BETTER = ("accuracy", "row_accuracy")


@dataclass(frozen=True)
class Entry:
    """A contestant on a task, at the learning rate of its lowest mean loss at the trained length.

    A cell that failed counts as an infinite loss, and no right answers.
    """

    task: str
    contestant: str
    learning_rate: float
    results: tuple[Result, ...]  # one a seed, in their order
    by_rate: dict[float, Interval]  # loss at the trained length

    def values(self, metric: str, multiple: int = 1) -> list[float]:
        """One a seed."""
        return [value_of(result, metric, multiple) for result in self.results]

    def interval(self, metric: str, multiple: int = 1) -> Interval:
        return interval(self.values(metric, multiple))


def value_of(result: Result, metric: str, multiple: int) -> float:
    for test in result["tests"]:
        if test["multiple"] == multiple:
            return test[metric]
    return 0.0 if metric in HIGHER_IS_BETTER else math.inf


def entries(arena: ArenaConfig, cells: Sequence[Cell]) -> dict[tuple[str, str], Entry]:
    """By (task, contestant); every cell must have a result."""
    results = {
        (cell.task, cell.contestant, cell.learning_rate, cell.seed): cell.result() for cell in cells
    }
    found = {}
    for task in arena.tasks:
        for contestant in arena.contestants:
            by_rate = {
                rate: tuple(results[task, contestant, rate, seed] or {} for seed in arena.seeds)
                for rate in arena.learning_rates
            }
            losses = {
                rate: interval([value_of(result, "loss", 1) for result in seeds])
                for rate, seeds in by_rate.items()
            }
            best = min(losses, key=lambda rate: losses[rate].mean)
            found[task, contestant] = Entry(task, contestant, best, by_rate[best], losses)
    return found


def main_metric(arena: ArenaConfig, task: str) -> str:
    """Accuracy for a synthetic task, bits per byte for text."""
    config = arena.config(task, arena.baseline, {})
    return "bits_per_byte" if config.data.task is None else "accuracy"


def comparisons(
    arena: ArenaConfig, task: str, metric: str, found: dict[tuple[str, str], Entry]
) -> dict[str, Comparison]:
    """Every contestant against the baseline, seed by seed."""
    values = {name: found[task, name].values(metric) for name in arena.contestants}
    baseline = values.pop(arena.baseline)
    return against(baseline, values)


def scaling(arena: ArenaConfig, matched: Matched, found: dict[tuple[str, str], Entry]) -> list[str]:
    """A sentence about each contestant's law over the tasks of `scaling`, if there are any.

    Compute is that of the baseline's training, which contestants are matched to.
    """
    if not arena.scaling:
        return []
    flops: list[float] = []
    losses: dict[str, list[list[float]]] = {name: [] for name in arena.contestants}
    for task in arena.scaling:
        config = arena.config(task, arena.baseline, {})
        tokens = config.train.steps * config.train.batch_size * config.data.sequence_length
        flops.append(matched.sizes[task, arena.baseline].training_flops * tokens)
        for name in arena.contestants:
            losses[name].append(found[task, name].values("loss"))
    whole = {name: np.array(rows) for name, rows in losses.items() if np.isfinite(rows).all()}
    return describe_scaling(flops, whole, arena.baseline)


def table(cells: Sequence[Cell]) -> pa.Table:
    """One row a cell and test."""
    rows: list[dict[str, Any]] = []
    for cell in cells:
        result = cell.result()
        if result is None:
            continue
        own = {
            "task": cell.task,
            "contestant": cell.contestant,
            "learning_rate": cell.learning_rate,
            "seed": cell.seed,
            "failed": result["failed"],
            "seconds": result.get("seconds"),
            "tokens_per_second": result.get("tokens_per_second"),
        }
        tests = result["tests"] or [dict.fromkeys(("multiple", "length", *METRICS))]
        rows += [
            own | {key: test[key] for key in ("multiple", "length", *METRICS)} for test in tests
        ]
    return pa.Table.from_pylist(rows)
