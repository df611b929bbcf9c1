"""Loss curves of runs, from their `metrics.jsonl`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxformer.errors import UserError
from jaxformer.train.metrics import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = tuple[list[int], list[float]]


def plot_losses(runs: Sequence[Path], out: Path) -> None:
    """Draw training and validation loss against the step, one colour per run, into `out`.

    Args:
        runs: run directories.
        out: an image file; its ending names the format, such as .png or .svg.

    Raises:
        UserError: matplotlib is not installed, a run has no losses, or the format is unknown.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("plot needs matplotlib: pip install 'jaxformer[plot]'") from error
    figure = Figure(figsize=(7, 4), layout="constrained")
    formats = figure.canvas.get_supported_filetypes()
    if out.suffix.removeprefix(".") not in formats:
        raise UserError(
            f"{out}: '{out.suffix}' is not an image format; allowed: {', '.join(formats)}"
        )
    if not out.parent.is_dir():
        raise UserError(f"{out}: the folder {out.parent} does not exist")
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file in it, such as {out / 'loss.png'}")
    axes = figure.add_subplot(xlabel="step", ylabel="loss, nats per token")
    for index, run in enumerate(runs):
        _draw(axes, run, f"C{index}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    try:
        figure.savefig(out, dpi=150)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error


def _draw(axes: "Axes", run: Path, color: str) -> None:
    training, validation = read_curve(run, "loss"), read_curve(run, "eval/loss")
    if not training[0] and not validation[0]:
        raise UserError(f"{run / 'metrics.jsonl'} has no losses yet")
    axes.plot(*training, color=color, alpha=0.4, linewidth=1, label=f"{run.name}, training")
    if validation[0]:
        label = f"{run.name}, validation: {validation[1][-1]:.3f}"
        axes.plot(*validation, color=color, marker="o", markersize=3, label=label)


def read_curve(run: Path, metric: str) -> Curve:
    """Steps and values of one metric of a run.

    Raises:
        UserError: the run has no readable metrics.jsonl.
    """
    file = run / "metrics.jsonl"
    if not file.is_file():
        raise UserError(f"{file} does not exist; give a run directory, such as runs/quickstart")
    rows = [row for row in read_rows(file) if row.get(metric) is not None]
    return [row["step"] for row in rows], [row[metric] for row in rows]
