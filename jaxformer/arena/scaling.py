"""Loss against compute over a ladder of sizes: a fitted law, and where two of them would cross."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxformer.arena.statistics import CONFIDENCE

BOOTSTRAP = 2000


class Ladder(NamedTuple):
    """A contestant's results on the sizes of one task: `flops` of training, one per rung, and
    `losses` [rungs, seeds]."""

    flops: Sequence[float]
    losses: np.ndarray


class Law(NamedTuple):
    """L(C) = exp(intercept) · C^slope, with the 95% interval of the slope over bootstrap draws."""

    intercept: float
    slope: float
    slope_low: float
    slope_high: float

    def at(self, flops: float) -> float:
        return math.exp(self.intercept + self.slope * math.log(flops))


class Crossing(NamedTuple):
    """The training FLOPs at which two laws meet, over bootstrap draws of the seeds.

    `share` of the draws cross beyond the ladder's end, up to which the law that falls faster is
    behind; the quantiles are of those. A ladder of a few rungs justifies no extrapolation beyond an
    order of magnitude or two: `share` and the width say how little is known.
    """

    share: float
    median: float | None
    low: float | None
    high: float | None


def fit(ladder: Ladder, random: np.random.Generator) -> Law:
    """A straight line through log L against log C by least squares."""
    draws = bootstrap(ladder, random)
    slope, intercept = np.polyfit(np.log(ladder.flops), np.log(ladder.losses).mean(axis=1), 1)
    low, high = np.quantile(draws[:, 0], _tails())
    return Law(float(intercept), float(slope), float(low), float(high))


def bootstrap(ladder: Ladder, random: np.random.Generator) -> np.ndarray:
    """[draws, 2]: slopes and intercepts, with the seeds of every rung drawn with replacement."""
    rungs, seeds = ladder.losses.shape
    picks = random.integers(0, seeds, (BOOTSTRAP, rungs, seeds))
    means = np.log(ladder.losses)[np.arange(rungs)[:, None], picks].mean(axis=2)  # [draws, rungs]
    return np.polyfit(np.log(ladder.flops), means.T, 1).T


def crossing(one: Ladder, other: Ladder, random: np.random.Generator) -> Crossing:
    """Where the laws of two contestants meet beyond the last rung of both."""
    (slope_a, intercept_a), (slope_b, intercept_b) = (
        bootstrap(ladder, random).T for ladder in (one, other)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        at = (intercept_b - intercept_a) / (slope_a - slope_b)  # log C
    beyond = at[np.isfinite(at) & (at > np.log(max(*one.flops, *other.flops)))]
    share = len(beyond) / BOOTSTRAP
    if not len(beyond):
        return Crossing(share, None, None, None)
    low, high = _tails()
    quantiles = np.minimum(np.quantile(beyond, [0.5, low, high]), 700.0)  # e^710 is infinite
    return Crossing(share, *np.exp(quantiles).tolist())


def describe_scaling(ladders: Mapping[str, Ladder], baseline: str) -> list[str]:
    """One sentence per contestant: its law, and where it would meet the baseline's."""
    random = np.random.default_rng(0)
    lines = []
    for name, own in ladders.items():
        law = fit(own, random)
        text = (
            f"{name}: loss falls as FLOPs^{law.slope:.3f} [{law.slope_low:.3f}, "
            f"{law.slope_high:.3f}]"
        )
        if name != baseline and baseline in ladders:
            text += f"; {_about(crossing(ladders[baseline], own, random), baseline)}"
        lines.append(text)
    return lines


def _about(met: Crossing, baseline: str) -> str:
    if met.median is None or met.share < 1 - CONFIDENCE:
        return f"no crossing with {baseline} beyond the ladder is in sight"
    return (
        f"in {met.share:.0%} of the draws it meets {baseline} beyond the ladder, at "
        f"{met.median:.1e} FLOPs [{met.low:.1e}, {met.high:.1e}]"
        + ("" if met.share > CONFIDENCE else "; this is not certain")
    )


def _tails() -> tuple[float, float]:
    return (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
