"""The figures of a report as PNG files, for the page in Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxformer.arena.report.figures import Figure, Point
from jaxformer.errors import UserError


def draw_images(figures: Sequence[Figure], folder: Path) -> dict[str, str]:
    """The file of every figure, by its title, relative to the folder above.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        raise UserError(
            "the arena's images need matplotlib: pip install 'jaxformer[plot]'"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for figure in figures:
        canvas = Canvas(figsize=(6.4, 3.8), layout="constrained")
        axes = canvas.add_subplot(
            title=figure.title,
            xlabel=figure.x_label,
            ylabel=figure.y_label,
            xscale="log" if figure.x_log else "linear",
            yscale="log" if figure.y_log else "linear",
        )
        for series in figure.series:
            _draw(axes, series.name, series.points, lines=figure.lines or series.joined)
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
        canvas.savefig(folder / f"{figure.name}.png", dpi=110)
        drawn[figure.title] = f"{folder.name}/{figure.name}.png"
    return drawn


def _draw(axes: Any, name: str, points: Sequence[Point], *, lines: bool) -> None:
    xs, means = [point[0] for point in points], [point[1] for point in points]
    if lines:
        (line,) = axes.plot(xs, means, label=name, marker="o" if len(points) <= 12 else None)
        banded = [point for point in points if point[2] is not None]
        if banded:
            x, _, low, high = zip(*banded, strict=True)
            axes.fill_between(x, low, high, alpha=0.15, color=line.get_color())
        return
    errors = [
        [mean - (mean if low is None else low) for _, mean, low, _ in points],
        [(mean if high is None else high) - mean for _, mean, _, high in points],
    ]
    axes.errorbar(xs, means, errors if points else None, label=name, fmt="o")
