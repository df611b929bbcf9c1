"""What may be said of an arena, computed from its figures: a winner only where it is sure."""

from jaxformer.arena.config import ArenaConfig, Check, Finding
from jaxformer.arena.results import HIGHER_IS_BETTER, Entry, comparisons, main_metric
from jaxformer.arena.statistics import CONFIDENCE

Entries = dict[tuple[str, str], Entry]


def better_than_baseline(arena: ArenaConfig, task: str, found: Entries) -> dict[str, bool]:
    """Contestants that differ from the baseline for sure: True for better, False for worse.

    Sure is: Holm-adjusted p below 0.05, and intervals over seeds that do not overlap.
    """
    metric = main_metric(arena, task)
    sign = 1 if metric in HIGHER_IS_BETTER else -1
    baseline = found[task, arena.baseline].interval(metric)
    sure = {}
    for name, comparison in comparisons(arena, task, metric, found).items():
        apart = not found[task, name].interval(metric).overlaps(baseline)
        if apart and comparison.adjusted < 1 - CONFIDENCE:
            sure[name] = sign * comparison.difference.mean > 0
    return sure


def winner(arena: ArenaConfig, task: str, found: Entries) -> str | None:
    """The contestant whose interval lies apart from all others', on the better side."""
    metric = main_metric(arena, task)
    sign = 1 if metric in HIGHER_IS_BETTER else -1
    intervals = {name: found[task, name].interval(metric) for name in arena.contestants}
    best = max(intervals, key=lambda name: sign * intervals[name].mean)
    others = [own for name, own in intervals.items() if name != best]
    return best if all(not intervals[best].overlaps(own) for own in others) else None


def verdict(arena: ArenaConfig, found: Entries) -> list[str]:
    """A sentence a task: who wins by how much, or that nobody does for sure."""
    return [_sentence(arena, task, found) for task in arena.tasks]


def _sentence(arena: ArenaConfig, task: str, found: Entries) -> str:
    metric = main_metric(arena, task)
    name = metric.replace("_", " ")
    sign = 1 if metric in HIGHER_IS_BETTER else -1
    means = {one: found[task, one].interval(metric).mean for one in arena.contestants}
    ranked = sorted(means, key=lambda one: -sign * means[one])
    best = winner(arena, task, found)
    if best is not None:
        second = ranked[1] if len(ranked) > 1 else best
        lead = (
            f"On {task}, {best} wins with {means[best]:.3f} {name}, {second} following with "
            f"{means[second]:.3f}"
        )
    else:
        lead = (
            f"On {task}, nobody wins for sure: {ranked[0]} has the best mean {name}, "
            f"{means[ranked[0]]:.3f}, within the seeds' uncertainty of others"
        )
    sure = better_than_baseline(arena, task, found)
    up = [one for one, is_better in sure.items() if is_better]
    down = [one for one, is_better in sure.items() if not is_better]
    said = [
        f"{words} than {arena.baseline} for sure: {', '.join(names)}"
        for words, names in (("better", up), ("worse", down))
        if names
    ]
    if not said:
        said = [f"no difference from {arena.baseline} is sure with {len(arena.seeds)} seeds"]
    return f"{lead}; {'; '.join(said)}."


def outcome(check: Check, found: Entries) -> tuple[bool, str]:
    """Whether a check of a finding holds, and the figures.

    It holds where the difference of the means is at least `by` in the better direction and the two
    intervals, or the interval and the number, do not overlap; equal perfect scores have none.
    """
    sign = 1 if check.metric in HIGHER_IS_BETTER else -1
    better = found[check.task, check.better].interval(check.metric, check.at)
    text = f"{check.better} {_shown(better)}"
    if isinstance(check.than, str):
        than = found[check.task, check.than].interval(check.metric, check.at)
        text += f", {check.than} {_shown(than)}"
        apart, bound = not better.overlaps(than), than.mean
    else:
        text += f", bound {check.than:g}"
        apart, bound = True, check.than
    far = sign * (better.mean - bound) >= check.by
    at = f" at {check.at}× the trained length" if check.at > 1 else ""
    if not far:
        text += f"; the means do not differ by {check.by:g} in this direction"
    elif not apart:
        text += "; the intervals over seeds overlap"
    return far and apart, f"{check.metric.replace('_', ' ')} on {check.task}{at}: {text}"


def reproduction(finding: Finding, found: Entries) -> tuple[str, list[str]]:
    """Whether all checks of a finding hold, in a word or two, and a line about each."""
    outcomes = [outcome(check, found) for check in finding.checks]
    word = "Reproduced" if all(holds for holds, _ in outcomes) else "Not reproduced"
    return word, [f"{'holds' if holds else 'does not hold'}: {text}" for holds, text in outcomes]


def _shown(own: tuple[float, float, float]) -> str:
    mean, low, high = own
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"
