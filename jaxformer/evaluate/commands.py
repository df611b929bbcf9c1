"""`jaxformer eval`: results of a run, printed as tables or as JSON."""

import json as json_format
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from jaxformer.checkpoint.manifest import versions
from jaxformer.evaluate import classification, perplexity, retrieval, speech, translation
from jaxformer.evaluate.suite import Options, Result
from jaxformer.evaluate.suites import find_suite
from jaxformer.generate.beam_search import BeamSearch
from jaxformer.objectives import CTCConfig
from jaxformer.run import BEAM_SEARCH, Run, load


def evaluate_run(
    path: Path, overrides: Sequence[str], search: BeamSearch = BEAM_SEARCH, *, json: bool
) -> int:
    """Evaluate a run's newest checkpoint, or the one named, on its validation data, and print.

    Overrides go on top of the run's configuration: `data.validation_source` gives other data,
    `eval.batch_size` another batch size, `eval.batches` a part of the data instead of all of them.
    `search` is how a decoder with an encoder writes.

    Returns:
        The exit code, 0.

    Raises:
        UserError: no such run, nothing to validate on, or overrides that do not fit it.
    """
    run = load(path, ["eval.batches=null", *overrides])
    if run.config.train.objective.compares_rows:
        retrieval.tell(run, path, json=json)
    elif run.config.model.outputs.of_rows:
        classification.tell(run, path, json=json)
    elif run.config.data.kind == "pairs":
        translation.tell(run, path, search, json=json)
    elif run.config.data.writes or isinstance(run.config.train.objective, CTCConfig):
        speech.tell(run, path, search, json=json)
    else:
        perplexity.tell(run, path, json=json)
    return 0


def evaluate_suites(
    path: Path, overrides: Sequence[str], names: Sequence[str], options: Options, *, json: bool
) -> int:
    """Evaluate a run's newest checkpoint, or the one named, on suites, and print.

    Overrides go on top of the run's configuration; `eval.batch_size` is the rows per batch.

    Returns:
        The exit code, 0.

    Raises:
        UserError: no such run, suite or task, or they do not fit each other.
    """
    suites = [find_suite(name, options) for name in dict.fromkeys(names)]
    if not any(name.startswith("lm_eval") for name in names):
        options.refuse()
    run = load(path, ["eval.batches=null", *overrides])
    results: dict[str, Result] = {}
    for suite in suites:
        results |= suite(run, lambda: None)
    if json:
        print(json_format.dumps(_record(path, run, results)))
    else:
        _print_table(f"{path}, step {run.step:,}", results)
    return 0


def _record(path: Path, run: Run, results: dict[str, Result]) -> dict[str, Any]:
    return {
        "run": str(path),
        "step": run.step,
        "config_sha256": _hash_wherever_it_lies(run),
        "versions": versions(),
        "results": {
            task: {
                **result.metrics,
                **{f"{name}_stderr": error for name, error in result.standard_errors.items()},
                **result.facts,
            }
            for task, result in results.items()
        },
    }


def _hash_wherever_it_lies(run: Run) -> str:
    """The hash of the configuration without the paths of a run and its copies, which may move."""
    places: dict[str, Any] = {
        "run": True,
        "init": {"source"},
        "data": {"tokenizer", "store_dir", "cache_dir", "cache_bytes"},
        "train": {"objective": {"teacher"}},
    }
    text = run.config.model_dump_json(exclude=places) + run.tokenizer.fingerprint
    return sha256(text.encode()).hexdigest()


def _print_table(title: str, results: dict[str, Result]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("task")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("±", justify="right")
    for task, result in results.items():
        for place, (name, value) in enumerate(result.metrics.items()):
            error = result.standard_errors.get(name)
            shown = "" if error is None else f"{error:.4f}"
            table.add_row("" if place else task, name, f"{value:,.4f}", shown)
    Console().print(table)
