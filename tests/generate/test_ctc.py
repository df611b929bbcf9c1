"""CTC decoding against all paths of tiny recordings."""

from collections import defaultdict
from itertools import product

import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.generate.ctc import beam_search, greedy, merged
from jaxformer.generate.decoders import decoder_for
from jaxformer.objectives import CTCConfig

FRAMES, VOCAB, BLANK = 5, 4, 2


def log_probs(seed: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(FRAMES, VOCAB))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def every(scores: np.ndarray) -> dict[tuple[int, ...], float]:
    """The probability of all labels, each summed over its paths."""
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for path in product(range(VOCAB), repeat=FRAMES):
        found[merged(path, BLANK)] += np.exp(sum(scores[np.arange(FRAMES), path]))
    return found


def test_repetitions_are_merged_before_blanks_are_dropped():
    assert merged([1, 1, BLANK, 1, 3, 3, BLANK, BLANK, 0], BLANK) == (1, 1, 3, 0)
    assert merged([BLANK, BLANK], BLANK) == merged([], BLANK) == ()


@pytest.mark.parametrize("seed", range(3))
def test_a_beam_as_wide_as_all_beginnings_is_exact(seed):
    scores = log_probs(seed)
    expected = sorted(every(scores).items(), key=lambda item: -item[1])
    found = beam_search(scores, BLANK, width=10_000)
    assert [labels for labels, _ in found] == [labels for labels, _ in expected]
    np.testing.assert_allclose(
        np.exp([score for _, score in found]), [p for _, p in expected], rtol=1e-12
    )
    assert sum(np.exp(score) for _, score in found) == pytest.approx(1, rel=1e-12)


def test_a_narrow_beam_has_lower_bounds_and_finds_what_the_likeliest_path_misses():
    missed = 0
    for seed in range(20):
        scores = log_probs(seed)
        exact = every(scores)
        (labels, score), *others = beam_search(scores, BLANK, width=4)
        assert len(others) == 3
        assert np.exp(score) <= exact[labels] * (1 + 1e-12)
        path = greedy(scores, BLANK)
        assert exact[labels] >= exact[path] * (1 - 1e-12)
        missed += labels != path
    assert missed > 3


def test_greedy_labels_are_those_of_the_likeliest_path():
    scores = np.full((4, VOCAB), -5.0)
    scores[np.arange(4), [0, 0, BLANK, 0]] = -0.1
    assert greedy(scores, BLANK) == (0, 0)


def test_runs_that_transcribe_continue_no_text():
    with pytest.raises(
        UserError,
        match="trained with ctc, which continues no text; use it with jaxformer predict RUN",
    ):
        decoder_for(CTCConfig(), model=None, params=None, eos_id=4, mesh=None)
