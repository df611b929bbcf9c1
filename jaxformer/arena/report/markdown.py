"""The report in Markdown, with the figures as images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxformer.arena.config import ArenaConfig
from jaxformer.arena.results import Entry, accuracies, comparisons, main_metric
from jaxformer.arena.verdict import rate_of, reproduction, summary, verdict


def markdown(
    arena: ArenaConfig,
    found: dict[tuple[str, str], Entry],
    images: Mapping[str, str],
    laws: Sequence[str],
    sizes: str,
    provenance: str,
) -> str:
    """The contents of the page, as Markdown."""
    return "\n\n".join(
        [
            f"# {Path(arena.dir).name}",
            *verdict(arena, found),
            summary(arena),
            *_finding(arena, found),
            *(part for task in arena.tasks for part in _task(arena, task, found)),
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


def _task(arena: ArenaConfig, task: str, found: dict[tuple[str, str], Entry]) -> list[str]:
    grid = accuracies(arena, task, found)
    if grid is None or arena.tasks[task].difficulty is None:  # lengths are in the table
        return [_table(arena, task, found)]
    lines = [
        f"{grid.title}:",
        "",
        f"| contestant | {' | '.join(grid.heads)} |",
        f"| --- | {' | '.join('---' for _ in grid.heads)} |",
        *(
            f"| {name} | {' | '.join(f'{value:.0%}' for value in values)} |"
            for name, values in grid.rows.items()
        ),
    ]
    return [_table(arena, task, found), "\n".join(lines)]


def _table(arena: ArenaConfig, task: str, found: dict[tuple[str, str], Entry]) -> str:
    metric = main_metric(arena, task)
    against = comparisons(arena, task, metric, found)
    multiples = arena.tasks[task].lengths
    heads = [f"{metric.replace('_', ' ')} at {multiple}×" for multiple in multiples]
    rows = [
        f"## {task}",
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
        rows.append(f"| {contestant}{note} | {rate_of(arena, entry)} | {' | '.join(shown)} | {p} |")
    return "\n".join(rows)
