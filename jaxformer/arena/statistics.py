"""Means over seeds with their uncertainty, and comparisons paired by seed."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean and the 95% interval of Student's t, unbounded for a single value."""

    mean: float
    low: float
    high: float

    def overlaps(self, other: "Interval") -> bool:
        return self.low <= other.high and other.low <= self.high


def interval(values: Sequence[float]) -> Interval:
    """mean ± t_{0.975, n−1} · s / √n; infinite bounds from a single value."""
    mean = float(np.mean(values))
    if len(values) < 2 or not math.isfinite(mean):
        return Interval(mean, -math.inf, math.inf)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return Interval(mean, mean - reach, mean + reach)


class Comparison(NamedTuple):
    """A contestant minus the baseline, seed by seed."""

    difference: Interval
    p: float  # of the paired t-test
    adjusted: float  # after Holm's correction


def against(
    baseline: Sequence[float], others: Mapping[str, Sequence[float]]
) -> dict[str, Comparison]:
    """Paired t-tests of every contestant against the baseline, corrected for their number.

    Values are in the order of the seeds, which paired cells share.
    """
    differences = {
        name: [a - b for a, b in zip(values, baseline, strict=True)]
        for name, values in others.items()
    }
    raw = {name: _paired_p(values) for name, values in differences.items()}
    adjusted = dict(zip(raw, holm(list(raw.values())), strict=True))
    return {
        name: Comparison(interval(values), raw[name], adjusted[name])
        for name, values in differences.items()
    }


def _paired_p(differences: Sequence[float]) -> float:
    """The two-sided p of a mean of zero; 1 if it cannot be computed."""
    if len(differences) < 2 or not np.all(np.isfinite(differences)):
        return 1.0
    if np.ptp(differences) == 0:
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): the k-th smallest of m is multiplied by m − k + 1, never
    below the one before it, and at most 1."""
    order = np.argsort(p_values)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
