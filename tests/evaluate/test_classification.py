"""The report on classes, from guesses made up here."""

import numpy as np
import pytest

from jaxformer.evaluate.classification import ByClass, Guesses, summary


def test_the_report_counts_what_was_guessed():
    found = Guesses(
        target=np.array([0, 0, 0, 1, 1]),
        likeliest=np.array([0, 0, 1, 1, 2]),
        confidence=np.array([0.99, 0.99, 0.51, 0.51, 0.51], np.float32),
        rank=np.array([0, 0, 1, 0, 6]),
        loss=np.array([0.1, 0.1, 1.0, 0.5, 3.0], np.float32),
    )
    report = summary(found, ["cat", "dog", "cow"])
    assert report.rows == 5
    assert report.loss == pytest.approx(4.7 / 5)
    assert report.accuracy == 3 / 5
    assert report.top5_accuracy == 4 / 5
    assert report.confusion == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert report.classes == [
        ByClass("cat", 3, precision=1.0, recall=2 / 3),
        ByClass("dog", 2, precision=1 / 2, recall=1 / 2),
        ByClass("cow", 0, precision=0.0, recall=None),
    ]
    # Two rows at 0.99, both right, and three at 0.51, one of them right.
    expected = (2 * 0.01 + abs(1 - 3 * 0.51)) / 5
    assert report.calibration_error == pytest.approx(expected, abs=1e-6)
