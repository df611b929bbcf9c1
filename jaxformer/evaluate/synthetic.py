"""Synthetic tasks as a suite: `synthetic:needle`, for any run whose tokens suit them."""

import math
from typing import Any

from jaxformer.config import DataConfig
from jaxformer.errors import UserError, did_you_mean
from jaxformer.evaluate.by_position import measure_on
from jaxformer.evaluate.causal import check_causal
from jaxformer.evaluate.suite import Check, Options, Result, Suite
from jaxformer.run import Run
from jaxformer.schema.tree import all_kinds, section_classes
from jaxformer.tasks import TaskUnion

MULTIPLES = (1, 2, 4)  # of the trained length, as far as the model's positions go


def synthetic_suite(what: str, options: Options) -> Suite:
    """The tasks `TASK[,TASK]`: the run's own task with its fields, others with their defaults.

    Raises:
        UserError: a task is unknown, or none is named.
    """
    known = all_kinds(section_classes(TaskUnion))
    names = list(dict.fromkeys(filter(None, map(str.strip, what.split(",")))))
    if not names:
        raise UserError(f"suite 'synthetic' has no tasks; give some: synthetic:{','.join(known)}")
    for name in names:
        if name not in known:
            raise UserError(
                f"suite 'synthetic:{what}': task '{name}' is unknown; allowed: {', '.join(known)}."
                f"{did_you_mean(name, known)}"
            )
    return lambda run, check: _evaluate(run, check, names)


def _evaluate(run: Run, check: Check, names: list[str]) -> dict[str, Result]:
    check_causal(run.config, "the accuracy on a synthetic task")
    found = {}
    longest = run.config.model.longest_row
    for name in names:
        for multiple in MULTIPLES:
            length = run.config.data.sequence_length * multiple
            if length <= longest:
                found[f"{name} at {length}"] = _result(run, _data(run, name, length))
                check()
    return found


def _data(run: Run, name: str, length: int) -> DataConfig:
    own = run.config.data
    task: Any = own.task if own.task is not None and own.task.kind == name else {"kind": name}
    data = own.model_dump() | {"sequence_length": length, "task": task, "stages": None}
    try:
        return DataConfig.model_validate(data)
    except ValueError as error:
        raise UserError(f"suite 'synthetic:{name}' at length {length}: {error}") from None


def _result(run: Run, data: DataConfig) -> Result:
    found = measure_on(run, data)
    metrics = {name: found[name] for name in ("accuracy", "row_accuracy", "loss")}
    share, rows = metrics["row_accuracy"], found["rows"]
    error = math.sqrt(share * (1 - share) / rows)
    return Result(metrics, {"row_accuracy": error}, {"rows": rows})
