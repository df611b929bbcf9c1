"""Laws and crossings that are known beforehand are found."""

import numpy as np
import pytest

from jaxformer.arena.scaling import Ladder, crossing, describe_scaling, fit

FLOPS = [1e12, 1e13, 1e14]


def ladder(scale: float, slope: float, noise: float = 0.002, seed: int = 0) -> Ladder:
    """L = scale · C^slope over five seeds."""
    means = scale * np.asarray(FLOPS) ** slope
    random = np.random.default_rng(seed)
    return Ladder(FLOPS, means[:, None] * np.exp(random.normal(0, noise, (3, 5))))


def test_the_law_is_found_with_an_interval_that_holds_it():
    law = fit(ladder(30.0, -0.08), np.random.default_rng(1))
    assert law.slope == pytest.approx(-0.08, abs=2e-3)
    assert np.exp(law.intercept) == pytest.approx(30.0, rel=0.05)
    assert law.slope_low < law.slope < law.slope_high
    assert law.slope_high - law.slope_low < 4e-3


def test_the_crossing_is_where_the_laws_are_equal():
    # 30 C^-0.08 = 60 C^-0.10 at C = 2^50 = 1.1e15.
    one, other = ladder(30.0, -0.08), ladder(60.0, -0.10, seed=1)
    met = crossing(one, other, np.random.default_rng(1))
    assert met.share == 1.0
    assert met.median == pytest.approx(2.0**50, rel=0.3)
    assert met.low < 2.0**50 < met.high


def test_laws_that_part_do_not_cross():
    ladders = {"attention": ladder(30.0, -0.08), "other": ladder(40.0, -0.06, seed=1)}
    lines = describe_scaling(ladders, "attention")
    assert lines[0].startswith("attention: loss falls as FLOPs^-0.0")
    assert "no crossing with attention beyond the ladder is in sight" in lines[1]
