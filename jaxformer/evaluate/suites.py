"""What a run may be evaluated on, by name: `--suite NAME`, or `--suite NAME:WHAT`."""

import json as json_format
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from jaxformer.checkpoint.manifest import versions
from jaxformer.evaluate.perplexity import validate
from jaxformer.run import Run, load
from jaxformer.schema import UserError, did_you_mean


@dataclass(frozen=True)
class Result:
    """What one task gave: metrics, their standard errors by the same names, and facts such as the
    number of samples."""

    metrics: dict[str, float]
    standard_errors: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What else the command line says: a folder of tasks, how many samples of each are taken, and
    how many solved ones go before each."""

    tasks_dir: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None

    def refuse(self) -> None:
        """Where no suite takes them.

        Raises:
            UserError: one of them is given.
        """
        given = [name for name, value in vars(self).items() if value is not None]
        if given:
            flag = "--" + given[0].replace("_", "-")
            raise UserError(
                f"{flag} is an option of the suite lm_eval; add --suite lm_eval:TASK, or leave it "
                f"out"
            )


Check = Callable[[], None]  # called between batches; what it raises ends the evaluation
Suite = Callable[[Run, Check], dict[str, Result]]  # by the names of the tasks


def _validation(what: str, options: Options) -> Suite:
    if what:
        raise UserError(
            f"suite 'validation:{what}': validation takes nothing after its name; for another text "
            f"give data.validation_source='text:books/*.txt'"
        )
    return _validate


def _validate(run: Run, check: Check) -> dict[str, Result]:
    found = validate(run, check)._asdict()
    facts = {name: found.pop(name) for name in ("tokens", "tokens_per_second")}
    return {"validation": Result(found, facts=facts)}


def _lm_eval(what: str, options: Options) -> Suite:
    from jaxformer.evaluate.harness import harness_suite

    return harness_suite(what, options)


def _synthetic(what: str, options: Options) -> Suite:
    from jaxformer.evaluate.synthetic import synthetic_suite

    return synthetic_suite(what, options)


# Each takes what follows its name and the options, and complains of both before a run is loaded.
SUITES: dict[str, Callable[[str, Options], Suite]] = {
    "validation": _validation,
    "lm_eval": _lm_eval,
    "synthetic": _synthetic,
}


def find_suite(name: str, options: Options) -> Suite:
    """The suite that `NAME` or `NAME:WHAT` means.

    Raises:
        UserError: there is none, or it does not have what is asked for.
    """
    kind, _, what = name.partition(":")
    if kind not in SUITES:
        nearest = did_you_mean(kind, SUITES)
        raise UserError(f"suite '{name}' is unknown; allowed: {', '.join(SUITES)}.{nearest}")
    return SUITES[kind](what, options)


def evaluate_suites(
    path: Path, overrides: Sequence[str], names: Sequence[str], options: Options, *, json: bool
) -> int:
    """Evaluate a run's newest checkpoint, or the one named, on suites, and print.

    Overrides go on top of the run's configuration; `eval.batch_size` is the number of rows at once.

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
    """Hashes the configuration without the places of a run and its copies, which may move."""
    places: dict[str, Any] = {
        "run": True,
        "init": {"source"},
        "data": {"tokenizer", "cache_dir"},
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
