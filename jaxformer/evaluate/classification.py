"""How well a run classifies its validation rows: by class, by confidence, and what it confuses."""

import json as json_format
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.batch import Batch
from jaxformer.evaluate.perplexity import data_of, found_in_validation
from jaxformer.evaluate.tables import table_of_figures
from jaxformer.model.language_model import LanguageModel
from jaxformer.objectives.classes import TOP, rank_of
from jaxformer.run import Run

PyTree = Any
BINS = 15  # of confidence
SHOWN = 20  # classes and confusions in a table


class Guesses(NamedTuple):
    """What a model says of rows, each array [rows]."""

    target: jax.Array  # −1 for rows that only fill up a batch
    likeliest: jax.Array
    confidence: jax.Array  # the probability of the likeliest class
    rank: jax.Array  # of the target: 0 is the likeliest
    loss: jax.Array  # −log p(target)


class ByClass(NamedTuple):
    """One class: of its `rows`, the share found (`recall`); of all rows taken for it, the share
    that are of it (`precision`); None of no rows."""

    name: str
    rows: int
    precision: float | None
    recall: float | None


class Report(NamedTuple):
    """Over all rows. `calibration_error` is Σ_b (rows in b / rows) · |accuracy_b − confidence_b|
    over 15 equal bins b of confidence (Guo et al., 2017, arXiv:1706.04599). `confusion[i][j]` is
    how many rows of class i were taken for class j."""

    loss: float
    accuracy: float
    top5_accuracy: float
    calibration_error: float
    rows: int
    classes: list[ByClass]
    confusion: list[list[int]]


def guess(model: LanguageModel, params: PyTree, batch: Batch) -> Guesses:
    """A pure function of a batch, to be jitted."""
    rows = (batch.inputs, batch.positions, batch.segment_ids)
    logits, _ = model.apply({"params": params}, *rows, method="classify")
    log_probs = jax.nn.log_softmax(logits)
    target = jnp.asarray(batch.targets)[:, 0]
    return Guesses(
        jnp.where(batch.loss_mask[:, 0], target, -1),
        jnp.argmax(logits, axis=-1),
        jnp.exp(jnp.max(log_probs, axis=-1)),
        rank_of(target, logits),
        -jnp.take_along_axis(log_probs, target[:, None], axis=-1)[:, 0],
    )


def report_on(run: Run, check: Callable[[], None] = lambda: None) -> Report:
    """Classify a run's validation rows; `check` is called after every batch.

    Raises:
        UserError: it has none, or the mesh does not divide the rows of a batch.
    """
    step = jax.jit(partial(guess, run.model))
    guesses = found_in_validation(run, step, "classifying", check)
    names = [run.tokenizer.decode([index]) for index in range(run.tokenizer.vocab_size)]
    every = jax.tree.map(lambda *parts: np.concatenate(parts), *guesses)
    return summary(jax.tree.map(lambda array: array[every.target >= 0], every), names)


def summary(found: Guesses, names: list[str]) -> Report:
    """The report on guesses about real rows."""
    target, likeliest = np.asarray(found.target), np.asarray(found.likeliest)
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (target, likeliest), 1)
    right, confidence = target == likeliest, np.asarray(found.confidence, np.float64)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    apart = np.abs(np.bincount(bins, right - confidence, BINS))
    classes = []
    for index, name in enumerate(names):
        own, taken = int(confusion[index].sum()), int(confusion[:, index].sum())
        both = int(confusion[index, index])
        classes.append(
            ByClass(name, own, both / taken if taken else None, both / own if own else None)
        )
    return Report(
        float(np.mean(found.loss, dtype=np.float64)),
        float(np.mean(right)),
        float(np.mean(found.rank < TOP)),
        float(apart.sum() / len(target)),
        len(target),
        classes,
        confusion.tolist(),
    )


def tell(run: Run, path: Path, *, json: bool) -> None:
    """Classify a run's validation rows, and print the report.

    Raises:
        UserError: see `report_on`.
    """
    report = report_on(run)
    if json:
        classes = [each._asdict() for each in report.classes]
        record = {"run": str(path), "step": run.step, **report._asdict(), "classes": classes}
        print(json_format.dumps(record))
    else:
        _print_table(f"{path}, step {run.step:,}", data_of(run.config.data), report)


def _print_table(title: str, data: str, report: Report) -> None:
    """The figures, and the classes with the lowest recall, which may be all."""
    from rich.console import Console
    from rich.table import Table

    figures = table_of_figures(
        title,
        [
            ("data", data),
            ("rows", f"{report.rows:,}"),
            ("loss (nats per row)", f"{report.loss:.4f}"),
            ("accuracy", f"{report.accuracy:.2%}"),
            ("top-5 accuracy", f"{report.top5_accuracy:.2%}"),
            ("calibration error", f"{report.calibration_error:.2%}"),
        ],
    )

    classes = Table("class", "rows", "precision", "recall", "most often taken for")
    there = [index for index, each in enumerate(report.classes) if each.rows]
    there.sort(key=lambda index: report.classes[index].recall or 0.0)
    for index in there[:SHOWN]:
        name, rows, precision, recall = report.classes[index]
        others = [0 if other == index else n for other, n in enumerate(report.confusion[index])]
        most = int(np.argmax(others))
        taken_for = f"{report.classes[most].name} ({others[most]:,})" if others[most] else ""
        shares = ("" if share is None else f"{share:.2%}" for share in (precision, recall))
        classes.add_row(name, f"{rows:,}", *shares, taken_for)
    console = Console()
    console.print(figures)
    console.print(classes)
    if len(there) > SHOWN:
        console.print(f"{len(there) - SHOWN} more classes, with higher recall, are in --json")
