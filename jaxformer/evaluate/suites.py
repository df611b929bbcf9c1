"""What a run may be evaluated on, by name: `--suite NAME`, or `--suite NAME:WHAT`."""

from collections.abc import Callable

from jaxformer.config import Config
from jaxformer.errors import UserError, did_you_mean
from jaxformer.evaluate.perplexity import validate
from jaxformer.evaluate.suite import Check, Options, Result, Suite
from jaxformer.paths import local_path
from jaxformer.run import Run


def _validation(what: str, options: Options) -> Suite:
    if what:
        raise UserError(
            f"suite 'validation:{what}': validation takes nothing after its name; for another text "
            f"give data.validation_source='text:books/*.txt'"
        )
    return _validate


def _validate(run: Run, check: Check) -> dict[str, Result]:
    found = validate(run, check).record()
    facts = {name: found.pop(name) for name in ("tokens", "tokens_per_second")}
    metrics = found.pop("layers") | found
    return {"validation": Result(metrics, facts=facts)}


def _lm_eval(what: str, options: Options) -> Suite:
    from jaxformer.evaluate.harness import harness_suite

    return harness_suite(what, options)


def _synthetic(what: str, options: Options) -> Suite:
    from jaxformer.evaluate.synthetic import synthetic_suite

    return synthetic_suite(what, options)


# Each takes what follows its name, and the options, and checks both before a run is loaded.
SUITES: dict[str, Callable[[str, Options], Suite]] = {
    "validation": _validation,
    "lm_eval": _lm_eval,
    "synthetic": _synthetic,
}


def find_suite(name: str, options: Options) -> Suite:
    """The suite that `NAME` or `NAME:WHAT` means.

    Raises:
        UserError: no such suite, or it does not have what is asked for.
    """
    kind, _, what = name.partition(":")
    if kind not in SUITES:
        nearest = did_you_mean(kind, SUITES)
        raise UserError(f"suite '{name}' is unknown; allowed: {', '.join(SUITES)}.{nearest}")
    return SUITES[kind](what, options)


def suites_of(config: Config) -> tuple[Suite, ...]:
    """The suites of a run's configuration, with their data.

    Raises:
        UserError: one of them is unknown, or its data is unavailable.
    """
    folder = config.eval.tasks_dir
    options = Options(None if folder is None else local_path(folder), config.eval.suites_limit)
    return tuple(find_suite(name, options) for name in dict.fromkeys(config.eval.suites))
