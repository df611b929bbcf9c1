"""The report in Markdown, with the figures as images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxformer.arena.config import ArenaConfig
from jaxformer.arena.results import Entry, comparisons, main_metric
from jaxformer.arena.verdict import reproduction, verdict


def markdown(
    arena: ArenaConfig,
    found: dict[tuple[str, str], Entry],
    images: Mapping[str, str],
    laws: Sequence[str],
    sizes: str,
    provenance: str,
) -> str:
    """The same as the page."""
    return "\n\n".join(
        [
            f"# {Path(arena.dir).name}",
            " ".join(verdict(arena, found)),
            *_finding(arena, found),
            *(_table(arena, task, found) for task in arena.tasks),
            *(f"![{title}]({file})" for title, file in images.items()),
            *(["## Scaling", "\n".join(f"- {law}" for law in laws)] if laws else []),
            "## Sizes",
            f"```\n{sizes}\n```",
            "## To repeat it",
            f"```\n{provenance}\n```\n",
        ]
    )


def _finding(arena: ArenaConfig, found: dict[tuple[str, str], Entry]) -> list[str]:
    if arena.finding is None:
        return []
    word, lines = reproduction(arena.finding, found)
    return [
        f"**{word}**: {arena.finding.claim} (published: {arena.finding.published}; "
        f"{arena.finding.source})",
        "\n".join(f"- {line}" for line in lines),
    ]


def _table(arena: ArenaConfig, task: str, found: dict[tuple[str, str], Entry]) -> str:
    metric = main_metric(arena, task)
    against = comparisons(arena, task, metric, found)
    multiples = arena.tasks[task].lengths
    heads = [f"{metric.replace('_', ' ')} at {multiple}×" for multiple in multiples]
    rows = [
        f"## {task}",
        "",
        f"Mean and 95% interval over {len(arena.seeds)} seeds at the best of "
        f"{len(arena.learning_rates)} learning rates; p is of the paired test against "
        f"{arena.baseline}, Holm-corrected.",
        "",
        f"| contestant | learning rate | {' | '.join(heads)} | p |",
        f"| --- | --- | {' | '.join('---' for _ in heads)} | --- |",
    ]
    for contestant in arena.contestants:
        entry = found[task, contestant]
        shown = []
        for multiple in multiples:
            own = entry.interval(metric, multiple)
            shown.append(f"{own.mean:.3f} ± {(own.high - own.low) / 2:.3f}")
        p = f"{against[contestant].adjusted:.3f}" if contestant in against else "baseline"
        failed = sum(result["failed"] is not None for result in entry.results)
        note = f" ({failed} of {len(arena.seeds)} failed)" if failed else ""
        rows.append(f"| {contestant}{note} | {entry.learning_rate:g} | {' | '.join(shown)} | {p} |")
    return "\n".join(rows)
