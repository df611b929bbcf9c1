"""Intervals and comparisons as scipy gives them."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxformer.arena.statistics import Interval, against, holm, interval

VALUES = [1.62, 1.71, 1.58, 1.66, 1.69]


def test_the_interval_is_that_of_students_t():
    own = interval(VALUES)
    expected = stats.t.interval(0.95, 4, np.mean(VALUES), stats.sem(VALUES))
    assert own.mean == pytest.approx(1.652)
    assert own[1:] == pytest.approx(expected, rel=1e-12)


def test_one_value_has_no_interval_and_a_failure_no_mean():
    assert interval([1.5]) == Interval(1.5, -math.inf, math.inf)
    assert interval([1.5, math.inf]).mean == math.inf


def test_the_comparison_is_the_paired_t_test():
    other = [1.60, 1.66, 1.57, 1.60, 1.62]
    found = against(VALUES, {"other": other})["other"]
    expected = stats.ttest_rel(other, VALUES)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert found.difference.mean == pytest.approx(np.mean(other) - np.mean(VALUES))
    assert found.difference[1:] == pytest.approx(expected.confidence_interval(0.95), rel=1e-12)


def test_holms_correction_is_that_of_the_definition():
    # By hand: 4 × 0.005, 3 × 0.01, 2 × 0.03, and 0.04 raised to the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_equal_differences_need_no_variance_and_failures_are_never_sure():
    assert against([1.0, 2.0], {"a": [1.5, 2.5]})["a"].p == 0.0
    assert against([1.0, 2.0], {"a": [1.0, 2.0]})["a"].p == 1.0
    assert against([1.0, 2.0], {"a": [math.inf, 2.0]})["a"].p == 1.0
