"""What a recording says, from the log-probabilities of a model trained with CTC.

Prefix beam search: Hannun et al., 2014, arXiv:1408.2873, without a language model.
"""

from collections import defaultdict
from collections.abc import Iterable
from itertools import groupby

import numpy as np

Labels = tuple[int, ...]


def merged(path: Iterable[int], blank: int) -> Labels:
    """The labels of a path, which has a label or the blank for every frame: repetitions are merged,
    then blanks dropped."""
    return tuple(int(label) for label, _ in groupby(path) if label != blank)


def greedy(log_probs: np.ndarray, blank: int) -> Labels:
    """The labels of the likeliest path, given log-probabilities [frames, vocab]. They need not be
    the likeliest labels, which are the sum of many paths."""
    return merged(np.argmax(log_probs, axis=-1).tolist(), blank)


def beam_search(log_probs: np.ndarray, blank: int, width: int) -> list[tuple[Labels, float]]:
    """Likely labels and their log-probabilities, the likeliest first.

    After every frame, the `width` likeliest beginnings are kept, each summed over all paths that
    give it; the next frame extends them by its `width` likeliest labels. With a width of at least
    the vocabulary and the number of beginnings, it is exact; otherwise log-probabilities are lower
    bounds.

    Args:
        log_probs: [frames, vocab], of one recording's frames alone.
    """
    nothing = (-np.inf, -np.inf)
    # Each beginning has the log-probability of paths that end in a blank, and in its last label.
    beams: dict[Labels, tuple[float, float]] = {(): (0.0, -np.inf)}
    for frame in np.asarray(log_probs, np.float64):
        likely = [int(label) for label in np.argsort(-frame)[: width + 1] if label != blank][:width]
        longer: dict[Labels, tuple[float, float]] = defaultdict(lambda: nothing)
        for labels, (in_blank, in_label) in beams.items():
            either = np.logaddexp(in_blank, in_label)
            before = longer[labels]
            last = in_label + frame[labels[-1]] if labels else -np.inf
            longer[labels] = (
                np.logaddexp(before[0], either + frame[blank]),
                np.logaddexp(before[1], last),
            )
            for label in likely:
                # A label that is repeated is a new one only behind a blank.
                reached = in_blank if labels[-1:] == (label,) else either
                if reached > -np.inf:
                    extended = (*labels, label)
                    before = longer[extended]
                    longer[extended] = before[0], np.logaddexp(before[1], reached + frame[label])
        kept = sorted(longer.items(), key=lambda item: -np.logaddexp(*item[1]))[:width]
        beams = dict(kept)
    return [(labels, float(np.logaddexp(*ends))) for labels, ends in beams.items()]
