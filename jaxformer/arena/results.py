"""The figures of a comparison, computed from the cells' results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from jaxformer.arena.cells import Cell, Result
from jaxformer.arena.config import ArenaConfig
from jaxformer.arena.match import Matched
from jaxformer.arena.scaling import Ladder
from jaxformer.arena.statistics import Comparison, Interval, against, interval

HIGHER_IS_BETTER = ("accuracy", "row_accuracy", "batch_accuracy")
METRICS = ("loss", "bits_per_byte", *HIGHER_IS_BETTER, "label_error_rate")


@dataclass(frozen=True)
class Entry:
    """A contestant on a task, at the learning rate of its lowest mean loss at the trained length.

    A cell that failed counts as an infinite loss, and no right answers.
    """

    task: str
    contestant: str
    learning_rate: float
    results: tuple[Result, ...]  # one per seed, in their order
    by_rate: dict[float, Interval]  # loss at the trained length

    def values(self, metric: str, multiple: int = 1, level: float | None = None) -> list[float]:
        """One per seed."""
        return [value_of(result, metric, multiple, level) for result in self.results]

    def interval(self, metric: str, multiple: int = 1, level: float | None = None) -> Interval:
        return interval(self.values(metric, multiple, level))


def value_of(result: Result, metric: str, multiple: int, level: float | None = None) -> float:
    for test in result["tests"]:
        if (test["multiple"], test["level"]) == (multiple, level):
            if metric == "turns":
                return test["layers"].get(metric, math.inf)
            return test[metric]
    return 0.0 if metric in HIGHER_IS_BETTER else math.inf


def entries(arena: ArenaConfig, cells: Sequence[Cell]) -> dict[tuple[str, str], Entry]:
    """The entries by (task, contestant); every cell must have a result."""
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
    """Accuracy for a synthetic task, and else the objective's figure: bits per byte of text."""
    config = arena.config(task, arena.baseline, {})
    return config.train.objective.figure if config.data.task is None else "accuracy"


def comparisons(
    arena: ArenaConfig, task: str, metric: str, found: dict[tuple[str, str], Entry]
) -> dict[str, Comparison]:
    """Every contestant against the baseline, seed by seed."""
    values = {name: found[task, name].values(metric) for name in arena.contestants}
    baseline = values.pop(arena.baseline)
    return against(baseline, values)


class Grid(NamedTuple):
    """Mean accuracies by contestant, [heads] each."""

    title: str
    heads: list[str]
    rows: dict[str, list[float]]


def accuracies(arena: ArenaConfig, task: str, found: dict[tuple[str, str], Entry]) -> Grid | None:
    """Accuracies by length and difficulty; None for data that has none, and for tasks that are
    tested only as they were trained."""
    entry = arena.tasks[task]
    places: list[tuple[int, float | None]] = [(multiple, None) for multiple in entry.lengths]
    heads = [f"{multiple}×" for multiple in entry.lengths]
    title = "Accuracy by length"
    if entry.difficulty is not None:
        title += f" and {entry.difficulty.field}"
        for level in entry.difficulty.values:
            places += [(multiple, level) for multiple in entry.lengths]
            heads += [f"{multiple}×, {level:g}" for multiple in entry.lengths]
    if main_metric(arena, task) != "accuracy" or len(places) == 1:
        return None
    rows = {
        name: [found[task, name].interval("accuracy", *place).mean for place in places]
        for name in arena.contestants
    }
    return Grid(title, heads, rows)


def ladders(
    arena: ArenaConfig, matched: Matched, found: dict[tuple[str, str], Entry]
) -> dict[str, Ladder]:
    """Loss and training FLOPs on the tasks of `scaling`, for contestants that finished them all."""
    climbed = {}
    for name in arena.contestants:
        losses = np.array([found[task, name].values("loss") for task in arena.scaling])
        flops = []
        for task in arena.scaling:
            config = arena.config(task, name, matched.solved[task, name])
            tokens = config.train.steps * config.train.batch_size * config.data.sequence_length
            flops.append(matched.sizes[task, name].training_flops * tokens)
        if arena.scaling and np.isfinite(losses).all():
            climbed[name] = Ladder(tuple(flops), losses)
    return climbed


def table(cells: Sequence[Cell]) -> pa.Table:
    """One row per cell and test."""
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
        columns = ("multiple", "level", "length", *METRICS)
        tests = result["tests"] or [dict.fromkeys(columns)]
        rows += [own | {key: test.get(key) for key in columns} for test in tests]
    return pa.Table.from_pylist(rows)
