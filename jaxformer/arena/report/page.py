"""The report as one HTML file that needs nothing else: style, script and figures within it."""

import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jaxformer.arena.afterwards import Afterwards
from jaxformer.arena.config import ArenaConfig
from jaxformer.arena.report.figures import EFFICIENCY, SCALING, Figure
from jaxformer.arena.results import Entry, accuracies, comparisons, main_metric
from jaxformer.arena.verdict import rate_of, reproduction, summary, verdict

Entries = dict[tuple[str, str], Entry]


def page(
    arena: ArenaConfig,
    found: Entries,
    figures: Sequence[Figure],
    laws: Sequence[str],
    after: Afterwards,
    sizes: str,
    provenance: str,
) -> str:
    """The whole document."""
    parts = files("jaxformer.arena.report")
    name = html.escape(Path(arena.dir).name)
    data = json.dumps([dataclasses.asdict(figure) for figure in figures], allow_nan=False)
    data = data.replace("</", "<\\/")  # or a name could end the script
    body = [
        f"<h1>{name}</h1>",
        f'<div class="verdict">{_paragraphs(verdict(arena, found))}</div>',
        _paragraphs([summary(arena)]),
        _finding(arena, found),
        *(
            f"<h2>{html.escape(task)}</h2>{_table(arena, task, found)}{_heat(arena, task, found)}"
            f"{_figures(task, figures)}{_samples(after.samples.get(task, {}))}"
            f"{_seen(arena, after.seen.get(task, []))}"
            for task in arena.tasks
        ),
        _scaling(laws, figures),
        f"<h2>Speed and memory</h2>{_figures(EFFICIENCY, figures)}" if arena.efficiency else "",
        f"<h2>Sizes</h2><pre>{html.escape(sizes)}</pre>",
        f"<h2>To repeat it</h2><pre>{html.escape(provenance)}</pre>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{(parts / 'style.css').read_text(encoding='utf-8')}</style>"
        f"</head><body>{''.join(body)}"
        f'<script type="application/json" id="figures">{data}</script>'
        f"<script>{(parts / 'chart.js').read_text(encoding='utf-8')}</script></body></html>\n"
    )


def _paragraphs(texts: Sequence[str]) -> str:
    return "".join(f"<p>{html.escape(text)}</p>" for text in texts)


def _finding(arena: ArenaConfig, found: Entries) -> str:
    if arena.finding is None:
        return ""
    finding = arena.finding
    word, outcomes = reproduction(finding, found)
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in outcomes)
    return (
        f"<h2>{word}</h2><p>{html.escape(finding.claim)} Published: "
        f"{html.escape(finding.published)} ({html.escape(finding.source)}).</p><ul>{lines}</ul>"
    )


def _figures(task: str, figures: Sequence[Figure]) -> str:
    drawn = "".join(
        f'<figure data-figure="{index}"><figcaption>{html.escape(figure.title)}</figcaption>'
        '<div class="legend"></div><div class="plot"></div><div class="tip" hidden></div></figure>'
        for index, figure in enumerate(figures)
        if figure.task == task
    )
    return f'<div class="figures">{drawn}</div>'


def _scaling(laws: Sequence[str], figures: Sequence[Figure]) -> str:
    items = "".join(f"<li>{html.escape(law)}</li>" for law in laws)
    return f"<h2>Scaling</h2><ul>{items}</ul>{_figures(SCALING, figures)}" if laws else ""


def _table(arena: ArenaConfig, task: str, found: Entries) -> str:
    metric = main_metric(arena, task)
    label = metric.replace("_", " ")
    against = comparisons(arena, task, metric, found)
    rows = []
    for name in arena.contestants:
        entry, own = found[task, name], found[task, name].interval(metric)
        failed = sum(result["failed"] is not None for result in entry.results)
        cells = [
            html.escape(name) + (f" ({failed} of {len(entry.results)} failed)" if failed else ""),
            rate_of(arena, entry),
            f"{own.mean:.3f}",
            f"{own.low:.3f} to {own.high:.3f}",
        ]
        if name in against:
            comparison = against[name]
            cells += [f"{comparison.difference.mean:+.3f}", f"{comparison.adjusted:.3f}"]
        else:
            cells += ["baseline", ""]
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    heads = ("contestant", "learning rate", label, "95% interval", "difference", "p (Holm)")
    return (
        f'<div class="wide"><table><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr>'
        f"{''.join(f'<tr>{row}</tr>' for row in rows)}</table></div>"
    )


def _heat(arena: ArenaConfig, task: str, found: Entries) -> str:
    """Accuracy by length and difficulty, coloured."""
    grid = accuracies(arena, task, found)
    if grid is None:
        return ""
    rows = []
    for name, values in grid.rows.items():
        cells = "".join(map(_heat_cell, values))
        rows.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in grid.heads)
    return (
        f'<h3>{grid.title}</h3><div class="wide"><table><tr><th>of the trained length</th>{heads}'
        f"</tr>{''.join(rows)}</table></div>"
    )


def _heat_cell(share: float) -> str:
    colour = f"hsl({round(120 * share)} 60% 72%)"
    return f'<td class="heat" style="background:{colour}">{share:.0%}</td>'


def _samples(texts: Mapping[str, str]) -> str:
    shown = "".join(
        f"<details><summary>{html.escape(name)} writes</summary><pre>{html.escape(text)}</pre>"
        "</details>"
        for name, text in texts.items()
    )
    return f"<h3>Samples</h3>{shown}" if shown else ""


def _seen(arena: ArenaConfig, rows: Sequence[Mapping[str, Any]]) -> str:
    """Pictures or spectrograms, and what each contestant's best run says of them."""
    if not rows:
        return ""
    names = [name for name in arena.contestants if name in rows[0]["answers"]]
    lines = []
    for row in rows:
        picture = f'<img alt="" src="data:image/png;base64,{row["picture"]}">'
        cells = [picture, html.escape(row["is"])]
        for name in names:
            answer = html.escape(row["answers"][name])
            cells.append(answer if row["answers"][name] == row["is"] else f"<mark>{answer}</mark>")
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in ("", "is", *names))
    return (
        f'<h3>Some of the validation rows</h3><div class="wide"><table class="seen">'
        f"<tr>{heads}</tr>{''.join(lines)}</table></div>"
    )
