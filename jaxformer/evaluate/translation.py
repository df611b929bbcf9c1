"""How well a run translates its validation pairs: BLEU, chrF, and where it goes wrong."""

import importlib.util
import json as json_format
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxformer.data.pair_texts import PairOfTexts, validation_texts
from jaxformer.errors import UserError
from jaxformer.evaluate.perplexity import data_of, validate
from jaxformer.evaluate.tables import table_of_figures
from jaxformer.generate.beam_search import BeamSearch
from jaxformer.run import Run

SHOWN = 20  # of the worst pairs


class Translation(NamedTuple):
    """One pair, what was written for its source, and the chrF of that."""

    source: str
    target: str
    written: str
    chrf: float


class Report(NamedTuple):
    """Over all pairs: BLEU (Papineni et al., 2002, aclanthology.org/P02-1040) and chrF (Popović,
    2015, aclanthology.org/W15-3049) from 0 to 100, as sacrebleu computes them with its defaults,
    which the signatures name (Post, 2018, arXiv:1804.08771).

    `length_ratio` is the words written per word of the targets, in which BLEU counts. `loss` is in
    nats per token of the targets. `worst` are the pairs with the lowest chrF."""

    loss: float
    bleu: float
    chrf: float
    length_ratio: float
    pairs: int
    bleu_signature: str
    chrf_signature: str
    worst: list[Translation]


def report_on(run: Run, search: BeamSearch, check: Callable[[], None] = lambda: None) -> Report:
    """Translate a run's validation pairs; `check` is called after every batch of the loss.

    Of `eval.batches` batches, as many pairs are translated as they would have rows.

    Raises:
        UserError: there are none, or sacrebleu is missing.
    """
    if importlib.util.find_spec("sacrebleu") is None:
        raise UserError("BLEU and chrF need another package: pip install 'jaxformer[translate]'")
    pairs = validation_texts(run.config.data)[: run.config.most_evaluated]
    loss = validate(run, check).loss
    written = run.translate([each.source for each in pairs], search)
    return summary(pairs, written, loss)


def summary(pairs: Sequence[PairOfTexts], written: Sequence[str], loss: float) -> Report:
    """The report on what was written for each pair."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    bleu, chrf = BLEU(), CHRF()
    targets = [each.target for each in pairs]
    of_words = bleu.corpus_score(written, [targets])
    of_characters = chrf.corpus_score(written, [targets])
    every = [
        Translation(*pair, text, chrf.sentence_score(text, [pair.target]).score)
        for pair, text in zip(pairs, written, strict=True)
    ]
    wrong = [each for each in every if each.written != each.target]
    wrong.sort(key=lambda each: each.chrf)
    return Report(
        loss,
        of_words.score,
        of_characters.score,
        of_words.ratio,
        len(pairs),
        str(bleu.get_signature()),
        str(chrf.get_signature()),
        wrong[:SHOWN],
    )


def tell(run: Run, path: Path, search: BeamSearch, *, json: bool) -> None:
    """Translate a run's validation pairs, and print the report.

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

    figures = table_of_figures(
        title,
        [
            ("data", data),
            ("pairs", f"{report.pairs:,}"),
            ("loss (nats per token)", f"{report.loss:.4f}"),
            ("BLEU", f"{report.bleu:.2f}"),
            ("chrF", f"{report.chrf:.2f}"),
            ("words written per word", f"{report.length_ratio:.3f}"),
        ],
    )

    worst = Table("chrF", "source", "target", "written")
    for each in report.worst:
        worst.add_row(f"{each.chrf:.1f}", *(Text(text) for text in each[:3]))
    console = Console()
    console.print(figures)
    console.print(f"BLEU {report.bleu_signature}; chrF {report.chrf_signature}", soft_wrap=True)
    if report.worst:
        console.print(worst)
