"""The figures of a report as data, which the page and the images draw alike."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxformer.arena.config import ArenaConfig
from jaxformer.arena.match import Matched
from jaxformer.arena.results import HIGHER_IS_BETTER, Entry, main_metric
from jaxformer.arena.scaling import Ladder, fit
from jaxformer.arena.statistics import Interval, interval

Entries = dict[tuple[str, str], Entry]
Point = tuple[float, float, float | None, float | None]  # x, mean, low, high
# x, from a result, a contestant, tokens and steps
Place = Callable[[dict[str, Any], str, float, float], float]


@dataclass(frozen=True)
class Series:
    """`joined` draws a line in a figure of single points."""

    name: str
    points: tuple[Point, ...]
    joined: bool = False


@dataclass(frozen=True)
class Figure:
    """Lines, or single points, with the intervals of their means."""

    task: str
    name: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    x_log: bool = False
    y_log: bool = False
    lines: bool = True


def figures(arena: ArenaConfig, matched: Matched, found: Entries) -> list[Figure]:
    """Every figure that has something to show, task by task."""
    made = []
    for task in arena.tasks:
        made += [
            *_curves(arena, matched, found, task),
            _loads(arena, found, task),
            _rates(arena, found, task),
            *_costs(arena, matched, found, task),
            _lengths(arena, found, task),
            _positions(arena, found, task),
        ]
    return [one for one in made if one and any(series.points for series in one.series)]


def _point(x: float, own: Interval) -> list[Point]:
    """One point, or none if the mean is not finite."""
    if not math.isfinite(own.mean):
        return []
    bounded = math.isfinite(own.low)
    return [(x, own.mean, own.low if bounded else None, own.high if bounded else None)]


def _label(metric: str) -> str:
    return metric.replace("_", " ")


def _curves(arena: ArenaConfig, matched: Matched, found: Entries, task: str) -> list[Figure]:
    """The training loss against tokens, FLOPs and seconds, at each contestant's best rate."""

    def flops(result: dict[str, Any], contestant: str, tokens: float, steps: float) -> float:
        return tokens * matched.sizes[task, contestant].training_flops

    def seconds(result: dict[str, Any], contestant: str, tokens: float, steps: float) -> float:
        return steps * result["step_seconds"]

    axes: list[tuple[str, Place]] = [
        ("tokens", _tokens),
        ("FLOPs", flops),
        ("seconds", seconds),
    ]
    return [
        Figure(
            task,
            f"{task}-loss-{label.lower()}",
            f"{task}: training loss against {label}",
            label,
            "loss (nats)",
            tuple(
                Series(name, _curve(found[task, name], "curve", name, place))
                for name in arena.contestants
            ),
            y_log=True,
        )
        for label, place in axes
    ]


def _tokens(result: dict[str, Any], contestant: str, tokens: float, steps: float) -> float:
    return tokens


def _curve(entry: Entry, key: str, name: str, place: Place) -> tuple[Point, ...]:
    whole = [result for result in entry.results if result["failed"] is None]
    points: list[Point] = []
    for rows in zip(*(result.get(key, ()) for result in whole), strict=False):
        xs = [place(result, name, row[1], row[0]) for result, row in zip(whole, rows, strict=True)]
        values = [row[2] for row in rows if row[2] is not None]
        if values:
            points += _point(float(np.mean(xs)), interval(values))
    return tuple(points)


def _loads(arena: ArenaConfig, found: Entries, task: str) -> Figure:
    """How unequally busy experts are; empty if no contestant has any."""
    series = tuple(
        Series(name, _curve(found[task, name], "load_curve", name, _tokens))
        for name in arena.contestants
    )
    title = f"{task}: how much more than the mean the busiest expert has"
    label = "load of the busiest expert, as a multiple of the mean, less 1"
    return Figure(task, f"{task}-load", title, "tokens", label, series)


def _rates(arena: ArenaConfig, found: Entries, task: str) -> Figure | None:
    if len(arena.learning_rates) == 1:
        return None
    series = tuple(
        Series(
            name,
            tuple(
                point
                for rate, own in sorted(found[task, name].by_rate.items())
                for point in _point(rate, own)
            ),
        )
        for name in arena.contestants
    )
    title = f"{task}: validation loss against the learning rate"
    return Figure(task, f"{task}-rates", title, "learning rate", "loss (nats)", series, x_log=True)


def _costs(arena: ArenaConfig, matched: Matched, found: Entries, task: str) -> list[Figure]:
    """Quality against the state that decoding keeps, if all have one, and against FLOPs, with the
    Pareto front."""
    metric = main_metric(arena, task)
    made = []
    for label, of in (
        ("bytes of decoding state", lambda sizes: sizes.state_bytes),
        ("FLOPs per token", lambda sizes: sizes.training_flops / 3),
    ):
        places = {name: float(of(matched.sizes[task, name])) for name in arena.contestants}
        if not all(places.values()):
            continue
        series = [
            Series(name, tuple(_point(places[name], found[task, name].interval(metric))))
            for name in arena.contestants
        ]
        front = pareto(
            [point for one in series for point in one.points], metric in HIGHER_IS_BETTER
        )
        made.append(
            Figure(
                task,
                f"{task}-{label.split()[0].lower()}",
                f"{task}: {_label(metric)} against {label}",
                label,
                _label(metric),
                (*series, Series("Pareto front", front, joined=True)),
                x_log=True,
                lines=False,
            )
        )
    return made


def pareto(points: Sequence[Point], higher_is_better: bool) -> tuple[Point, ...]:
    """The points that no other beats in cost and quality, the cheapest first."""
    sign = 1 if higher_is_better else -1
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p[0], -sign * p[1])):
        if not front or sign * point[1] > sign * front[-1][1]:
            front.append((point[0], point[1], None, None))
    return tuple(front)


def _lengths(arena: ArenaConfig, found: Entries, task: str) -> Figure | None:
    multiples = arena.tasks[task].lengths
    if len(multiples) == 1:
        return None
    metric = main_metric(arena, task)
    series = tuple(
        Series(
            name,
            tuple(
                point
                for multiple in multiples
                for point in _point(multiple, found[task, name].interval(metric, multiple))
            ),
        )
        for name in arena.contestants
    )
    title = f"{task}: {_label(metric)} beyond the trained length"
    label = "multiple of the trained length"
    return Figure(task, f"{task}-lengths", title, label, _label(metric), series, x_log=True)


def _positions(arena: ArenaConfig, found: Entries, task: str) -> Figure | None:
    """The loss along the longest tested rows; for text only, where every position counts."""
    if arena.config(task, arena.baseline, {}).data.task is not None:
        return None
    multiple = max(arena.tasks[task].lengths)
    series = []
    for name in arena.contestants:
        tests = [
            test
            for result in found[task, name].results
            for test in result["tests"]
            if test["multiple"] == multiple and test["by_position"] is not None
        ]
        points: list[Point] = []
        for part, losses in enumerate(zip(*(test["by_position"] for test in tests), strict=True)):
            if None not in losses:
                size = tests[0]["length"] / len(tests[0]["by_position"])
                points += _point((part + 0.5) * size, interval(losses))
        series.append(Series(name, tuple(points)))
    title = f"{task}: loss by position in rows of {multiple}× the trained length"
    return Figure(task, f"{task}-positions", title, "position", "loss (nats)", tuple(series))


SCALING = "scaling"  # stands for a task in the figure of the ladder
BEYOND = 10.0  # times the FLOPs of the last rung, up to which the laws are drawn


def scaling_figures(ladders: Mapping[str, Ladder]) -> list[Figure]:
    """Loss against FLOPs rung by rung, and the fitted laws; nothing without a ladder."""
    series = []
    for name, ladder in ladders.items():
        law = fit(ladder, np.random.default_rng(0))
        points = [
            point
            for flops, losses in zip(ladder.flops, ladder.losses, strict=True)
            for point in _point(flops, interval(losses))
        ]
        ends = (ladder.flops[0], BEYOND * ladder.flops[-1])
        line = tuple((flops, law.at(flops), None, None) for flops in ends)
        series += [Series(name, tuple(points)), Series(f"{name}, law", line, joined=True)]
    title = "loss against training FLOPs, and the fitted laws"
    figure = Figure(
        SCALING,
        "scaling",
        title,
        "training FLOPs",
        "loss (nats)",
        tuple(series),
        x_log=True,
        y_log=True,
        lines=False,
    )
    return [figure] if series else []


EFFICIENCY = "efficiency"  # stands for a task in the figures of speed and memory


def efficiency_figures(arena: ArenaConfig, rows: Sequence[dict[str, Any]]) -> list[Figure]:
    """Speed and memory by length, and decoding by context; nothing if it was not measured."""
    made = []
    for key, at, title in (
        ("train_tokens_per_second", "length", "training tokens/s"),
        ("peak_bytes", "length", "peak bytes of a training step"),
        ("compile_seconds", "length", "seconds to compile a training step"),
        ("decode_tokens_per_second", "context", "decoded tokens/s"),
        ("state_bytes", "context", "bytes of decoding state"),
    ):
        series = tuple(
            Series(
                name,
                tuple(
                    (row[at], row[key], None, None)
                    for row in rows
                    if row["contestant"] == name and key in row
                ),
            )
            for name in arena.contestants
        )
        name = f"efficiency-{key.replace('_', '-')}"
        made.append(
            Figure(EFFICIENCY, name, f"{title} by {at}", at, title, series, x_log=True, y_log=True)
        )
    return [one for one in made if any(series.points for series in one.series)]
