"""The verdict of an arena, computed from its figures, which names only significant differences."""

import math

from jaxformer.arena.config import ArenaConfig, Check, Finding
from jaxformer.arena.results import HIGHER_IS_BETTER, Entry, comparisons, main_metric
from jaxformer.arena.statistics import CONFIDENCE, Comparison

Entries = dict[tuple[str, str], Entry]


def sure_differences(arena: ArenaConfig, task: str, found: Entries) -> dict[str, Comparison]:
    """Contestants that differ significantly from the baseline: their Holm-adjusted p is below 0.05,
    and their interval over seeds does not overlap the baseline's."""
    metric = main_metric(arena, task)
    baseline = found[task, arena.baseline].interval(metric)
    return {
        name: comparison
        for name, comparison in comparisons(arena, task, metric, found).items()
        if comparison.adjusted < 1 - CONFIDENCE
        and not found[task, name].interval(metric).overlaps(baseline)
    }


def winner(arena: ArenaConfig, task: str, found: Entries) -> str | None:
    """The contestant whose interval lies apart from all others', on the better side."""
    metric = main_metric(arena, task)
    sign = 1 if metric in HIGHER_IS_BETTER else -1
    intervals = {name: found[task, name].interval(metric) for name in arena.contestants}
    best = max(intervals, key=lambda name: sign * intervals[name].mean)
    others = [own for name, own in intervals.items() if name != best]
    return best if all(not intervals[best].overlaps(own) for own in others) else None


def verdict(arena: ArenaConfig, found: Entries) -> list[str]:
    """One sentence per task: who wins by how much, or that there is no clear winner."""
    return [_sentence(arena, task, found) for task in arena.tasks]


def summary(arena: ArenaConfig) -> str:
    """What was compared, in a line."""
    contestants, rates, seeds = len(arena.contestants), len(arena.learning_rates), len(arena.seeds)
    matched = (
        f"matched in {arena.match.budget.replace('_', ' ')} to {arena.baseline} within "
        f"{arena.match.tolerance:.1%}"
        if arena.match
        else "not matched"
    )
    return (
        f"{contestants} contestants, {matched}, on {len(arena.tasks)} tasks, with {rates} learning "
        f"rates and {seeds} seeds each, on the same batches. Figures are means over the seeds at "
        f"each contestant's best learning rate, with 95% intervals; p is of a test paired by seed "
        f"against {arena.baseline}, Holm-corrected. A learning rate with * is at the edge of the "
        f"sweep: a wider one may do better."
    )


def rate_of(arena: ArenaConfig, entry: Entry) -> str:
    """The chosen learning rate, with * if it is at the edge of the sweep."""
    rates = arena.learning_rates
    edge = len(rates) > 1 and entry.learning_rate in (min(rates), max(rates))
    return f"{entry.learning_rate:g}{'*' if edge else ''}"


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
            f"On {task}, there is no clear winner: {ranked[0]} has the best mean {name}, "
            f"{means[ranked[0]]:.3f}, but its interval overlaps another's"
        )
    sure = sure_differences(arena, task, found)
    said = []
    for word, side in (("better", sign), ("worse", -sign)):
        names = [one for one, own in sure.items() if side * own.difference.mean > 0]
        if names:
            p = math.ceil(1000 * max(sure[one].adjusted for one in names)) / 1000
            said.append(
                f"significantly {word} than {arena.baseline} (p ≤ {p:g}): {', '.join(names)}"
            )
    if not said:
        said = [f"no difference from {arena.baseline} is significant with {len(arena.seeds)} seeds"]
    return f"{lead}; {'; '.join(said)}."


def outcome(check: Check, found: Entries) -> tuple[bool, str]:
    """Whether a check of a finding holds, and the figures.

    It holds if the mean is better than the other's, or than the number, by at least `by`, and the
    intervals of two contestants do not overlap. With a negative `by`, the mean may be worse by as
    much, and intervals may overlap.
    """
    sign = 1 if check.metric in HIGHER_IS_BETTER else -1
    better = found[check.task, check.better].interval(check.metric, check.at, check.level)
    text = f"{_named(check.better, check.level)} {_shown(better)}"
    if isinstance(check.than, str):
        than = found[check.task, check.than].interval(check.metric, check.at, check.than_level)
        text += f", {_named(check.than, check.than_level)} {_shown(than)}"
        apart, bound = check.by < 0 or not better.overlaps(than), than.mean
    else:
        text += f", bound {check.than:g}"
        apart, bound = True, check.than
    far = sign * (better.mean - bound) >= check.by
    at = f" at {check.at}× the trained length" if check.at > 1 else ""
    if check.by < 0:
        said = "the mean may be worse by" if far else "worse by more than"
        text += f"; {said} {-check.by:g}"
    elif not far and not check.by:
        text += "; the mean is on the other side"
    elif not far:
        text += f"; the means do not differ by {check.by:g} in this direction"
    elif not apart:
        text += "; the intervals over seeds overlap"
    return far and apart, f"{check.metric.replace('_', ' ')} on {check.task}{at}: {text}"


def reproduction(finding: Finding, found: Entries) -> tuple[str, list[str]]:
    """Whether all checks of a finding hold, in a word or two, and a line about each check; if some
    do not hold, also the reason that the finding gives."""
    outcomes = [outcome(check, found) for check in finding.checks]
    lines = [f"{'holds' if holds else 'does not hold'}: {text}" for holds, text in outcomes]
    held = sum(holds for holds, _ in outcomes)
    if held == len(outcomes):
        return "Reproduced", lines
    if finding.why_not is not None:
        lines.append(f"why: {finding.why_not}")
    return ("Partly reproduced" if held else "Not reproduced"), lines


def _named(contestant: str, level: float | None) -> str:
    return contestant if level is None else f"{contestant} at difficulty {level:g}"


def _shown(own: tuple[float, float, float]) -> str:
    mean, low, high = own
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"
