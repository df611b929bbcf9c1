"""How well a run transcribes its validation recordings: word and character errors."""

import json as json_format
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.batch import Batch, Source
from jaxformer.data.loader import Mixture
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.evaluate.perplexity import data_of, found_in_validation, validate
from jaxformer.evaluate.tables import table_of_figures
from jaxformer.generate.beam_search import BeamSearch
from jaxformer.generate.ctc import merged
from jaxformer.generate.targets import AT_ONCE
from jaxformer.model.language_model import LanguageModel
from jaxformer.objectives.ctc import CTCConfig, fit, likeliest
from jaxformer.run import BEAM_SEARCH, Run

PyTree = Any
SHOWN = 20  # of the worst recordings


class Heard(NamedTuple):
    """What a model hears in a batch of recordings."""

    path: jax.Array  # [rows, frames], the likeliest label or blank; the blank for padding
    labels: jax.Array  # [rows, labels], what is said; −1 for padding
    too_long: jax.Array  # [rows], whether the labels do not fit into the frames
    real: jax.Array  # [rows], False for rows that only fill up a batch
    loss: jax.Array  # Σ −log p(labels | frames), of recordings whose labels fit
    num_labels: jax.Array  # of these recordings


class Transcript(NamedTuple):
    """One recording, and how many words and characters of what is said must be inserted, deleted or
    replaced for what was heard."""

    said: str
    heard: str
    word_errors: int
    character_errors: int


class Report(NamedTuple):
    """Over all recordings. An error rate is Σ errors / Σ words, or characters, of what is said;
    None if that is nothing. `loss` is in nats per label, without the recordings that are
    `too_long`, see `CTCConfig`; a decoder has none of these. `worst` are those with the most word
    errors."""

    loss: float
    word_error_rate: float | None
    character_error_rate: float | None
    recordings: int
    words: int
    characters: int
    too_long: int
    worst: list[Transcript]


def listen(model: LanguageModel, objective: CTCConfig, params: PyTree, batch: Batch) -> Heard:
    """A pure function of a batch, to be jitted."""
    rows = (batch.inputs, batch.positions, batch.segment_ids)
    x, head, _ = model.apply({"params": params}, *rows, method="read")
    frames = jnp.asarray(batch.segment_ids != 0)
    sums = objective.evaluate(model, params, batch).sums
    return Heard(
        jnp.where(frames, likeliest(model, x, head), objective.blank_of(model)),
        jnp.where(batch.loss_mask, batch.targets, -1),
        ~fit(batch)[:, 1],
        jnp.any(frames, axis=1),
        sums.loss,
        sums.tokens,
    )


def report_on(
    run: Run, search: BeamSearch = BEAM_SEARCH, check: Callable[[], None] = lambda: None
) -> Report:
    """Transcribe a run's validation recordings, by CTC or with a decoder, which searches;
    `check` is called after every batch.

    Raises:
        UserError: it has none, or the mesh does not divide the rows of a batch.
    """
    objective = run.config.train.objective
    if run.config.data.writes:
        return _report_on_written(run, search, check)
    assert isinstance(objective, CTCConfig)
    step = jax.jit(partial(listen, run.model, objective))
    heard = list(found_in_validation(run, step, "transcribing", check))
    return summary(heard, run.tokenizer, objective.blank_of(run.model))


def summary(heard: Sequence[Heard], tokenizer: Tokenizer, blank: int) -> Report:
    """The report on all batches."""
    transcripts = [
        transcript(tokenizer.decode(labels[labels >= 0]), tokenizer.decode(merged(path, blank)))
        for batch in heard
        for path, labels, real in zip(batch.path, batch.labels, batch.real, strict=True)
        if real
    ]
    num_labels = sum(int(batch.num_labels) for batch in heard)
    loss = sum(float(batch.loss) for batch in heard) / max(num_labels, 1)
    too_long = sum(int(np.sum(batch.too_long & batch.real)) for batch in heard)
    return _report(transcripts, loss, too_long)


def _report_on_written(run: Run, search: BeamSearch, check: Callable[[], None]) -> Report:
    loss, config = validate(run, check).loss, run.config
    rows = Mixture(Stores(config.data, run.tokenizer).validation)
    count = len(range(len(rows))[: config.most_evaluated])
    numbers = np.split(np.arange(count), np.arange(AT_ONCE, count, AT_ONCE))
    said: list[str] = []

    def sources() -> Iterator[Source]:
        for each in numbers:
            batch = rows.pack(each)
            for labels, mask in zip(batch.targets, batch.loss_mask, strict=True):
                said.append(run.tokenizer.decode(labels[mask][:-1]))
            yield batch.inputs.source

    heard = run.write(sources(), count, search)
    return _report([transcript(*pair) for pair in zip(said, heard, strict=True)], loss, 0)


def _report(transcripts: Sequence[Transcript], loss: float, too_long: int) -> Report:
    words = sum(len(each.said.split()) for each in transcripts)
    characters = sum(len(each.said) for each in transcripts)
    word_errors = sum(each.word_errors for each in transcripts)
    character_errors = sum(each.character_errors for each in transcripts)
    wrong = [each for each in transcripts if each.character_errors]
    wrong.sort(key=lambda each: (-each.word_errors, -each.character_errors))
    return Report(
        loss,
        word_errors / words if words else None,
        character_errors / characters if characters else None,
        len(transcripts),
        words,
        characters,
        too_long,
        wrong[:SHOWN],
    )


def transcript(said: str, heard: str) -> Transcript:
    """The errors of one recording. Words are what spaces separate; capitals, punctuation and spaces
    count as they are written."""
    words = edit_distance(said.split(), heard.split())
    return Transcript(said, heard, words, edit_distance(said, heard))


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """The fewest insertions, deletions and substitutions that make b of a (Levenshtein, 1966)."""
    ids = {item: number for number, item in enumerate({*a, *b})}
    others, places = np.array([ids[item] for item in b], int), np.arange(len(b) + 1)
    distances = places  # to all beginnings of b
    for item in a:
        best = distances + 1
        best[1:] = np.minimum(best[1:], distances[:-1] + (others != ids[item]))
        # An insertion costs 1: the minimum over k of best_k + (place − k).
        distances = np.minimum.accumulate(best - places) + places
    return int(distances[-1])


def tell(run: Run, path: Path, search: BeamSearch, *, json: bool) -> None:
    """Transcribe a run's validation recordings, and print the report.

    Raises:
        UserError: see `report_on`.
    """
    report = report_on(run, search)
    if json:
        worst = [each._asdict() for each in report.worst]
        record = {"run": str(path), "step": run.step, **report._asdict(), "worst": worst}
        print(json_format.dumps(record))
    else:
        _print_table(f"{path}, step {run.step:,}", data_of(run.config.data), report)


def _print_table(title: str, data: str, report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def rate(value: float | None) -> str:
        return "" if value is None else f"{value:.2%}"

    figures = table_of_figures(
        title,
        [
            ("data", data),
            ("recordings", f"{report.recordings:,}"),
            ("too long for their frames", f"{report.too_long:,}"),
            ("loss (nats per label)", f"{report.loss:.4f}"),
            ("word error rate", rate(report.word_error_rate)),
            ("character error rate", rate(report.character_error_rate)),
        ],
    )

    worst = Table("word errors", "said", "heard")
    for each in report.worst:
        worst.add_row(f"{each.word_errors:,}", Text(each.said), Text(each.heard))
    console = Console()
    console.print(figures)
    if report.worst:
        console.print(worst)
