"""Tasks of lm-evaluation-harness (Gao et al., github.com/EleutherAI/lm-evaluation-harness)."""

import logging
import os
import random
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.errors import UserError, did_you_mean
from jaxformer.evaluate.suite import Check, Options, Result, Suite
from jaxformer.parallel import processes
from jaxformer.run import Run
from jaxformer.terminal import say

# The harness's own seeds, so that it draws the same examples as anywhere else.
PYTHON_SEED, NUMPY_SEED, FEWSHOT_SEED = 0, 1234, 1234
# Bootstrap draws for a standard error without a formula; they give two digits of it.
BOOTSTRAP_DRAWS = 1000


def harness_suite(what: str, options: Options) -> Suite:
    """The tasks `TASK[,TASK]` (or groups, or tags) of the harness, their data loaded.

    Raises:
        UserError: the harness is not installed, a task is unknown or would run foreign code, its
            data is unavailable, or an option is out of range.
    """
    names = list(dict.fromkeys(filter(None, map(str.strip, what.split(",")))))
    if not names:
        raise UserError("suite 'lm_eval' has no tasks; give some: lm_eval:hellaswag,arc_easy")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit is {options.limit}; allowed: 1 or more samples of each task")
    if options.num_fewshot is not None and options.num_fewshot < 0:
        raise UserError(f"--num-fewshot is {options.num_fewshot}; allowed: 0 or more")
    folder = options.tasks_dir
    if folder is not None and not folder.is_dir():
        raise UserError(f"tasks folder {folder} does not exist; give a folder of task YAMLs")
    if find_spec("lm_eval") is None:
        raise UserError(
            "suite 'lm_eval' needs lm-evaluation-harness: pip install 'jaxformer[eval]'"
        )
    _set_up()
    with processes.first_goes_first(f"tasks {what}"):
        loaded = _load(names, folder)
    for name, task in loaded["tasks"].items():
        _check(name, task)
        # As in the harness's own command: a task that sets 0 examples keeps 0.
        if options.num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=options.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return lambda run, check: _evaluate(run, check, loaded, options)


def _set_up() -> None:
    """Settings that precede the harness's import: no metric is downloaded as code, and no process
    is forked, which would copy JAX's locks without its threads."""
    os.environ["HF_EVALUATE_OFFLINE"] = "1"
    os.environ["DISABLE_MULTIPROC"] = "1"
    if not processes.is_first():
        os.environ["TQDM_DISABLE"] = os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    logging.getLogger("lm_eval").setLevel(logging.CRITICAL)
    _seed({})


def _seed(tasks: dict[str, Any]) -> None:
    """Seed what tasks draw from: the global generators, and each task's own."""
    random.seed(PYTHON_SEED)
    np.random.seed(NUMPY_SEED)  # noqa: NPY002
    for task in tasks.values():
        task.set_fewshot_seed(seed=FEWSHOT_SEED)


def _load(names: Sequence[str], folder: Path | None) -> Any:
    """The harness's own structure of tasks and groups."""
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError

    manager = _task_manager(names, folder)
    for name in names:
        if name not in manager.task_index:
            own = "" if folder is None else f" and of {folder}"
            raise UserError(
                f"task '{name}' is not one of the {len(manager.all_tasks):,} tasks of lm-eval{own}."
                f"{did_you_mean(name, manager.all_tasks)}"
            )
    try:
        return manager.load(list(names))
    except OSError as error:  # no network, no such data set, no such file
        raise UserError(
            f"the data of {', '.join(names)} is unavailable: {str(error).splitlines()[0]}. "
            f"Without a network, give tasks on files of your own with --tasks-dir"
        ) from error
    except (ValueError, LookupError, AttributeError, TemplateError, DatasetsError) as error:
        raise UserError(
            f"the harness cannot load {', '.join(names)}: {type(error).__name__}: {error}"
        ) from error


def _task_manager(names: Sequence[str], folder: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    from jaxformer.evaluate.task_folder import read_task_folder

    if folder is not None:
        own = read_task_folder(folder)
        if set(names) <= set(own.all_subtasks):
            return own
    if processes.is_first():
        say("reading the list of lm-evaluation-harness's tasks")
    return TaskManager(include_path=None if folder is None else str(folder))


def _check(name: str, task: Any) -> None:
    from jaxformer.evaluate.harness_model import generation_of

    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"task {name} shows the model images or sound; allowed: text only")
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(f"task {name} runs the code that a model writes, which is not done here")
    missing = [metric for metric, function in task._metric_fn_list.items() if function is None]
    if missing and task.config.process_results is None:
        raise UserError(
            f"task {name} has the metric {missing[0]}, which is code on the Hub, not in the "
            f"harness; it is not downloaded and run"
        )
    if task.OUTPUT_TYPE == "generate_until":
        generation_of(task.config.generation_kwargs, name)


def _evaluate(run: Run, check: Check, loaded: Any, options: Options) -> dict[str, Result]:
    from lm_eval.evaluator import evaluate

    from jaxformer.evaluate.harness_model import HarnessModel

    _seed(loaded["tasks"])
    model = HarnessModel(run, check, options.draft)
    for name, task in loaded["tasks"].items():
        if task.OUTPUT_TYPE == "generate_until":
            model.check_room(task.config.generation_kwargs, name)
    found = evaluate(
        model, loaded, limit=options.limit, bootstrap_iters=BOOTSTRAP_DRAWS, log_samples=False
    )
    if model.shortened and processes.is_first():
        length = run.config.data.sequence_length
        say(
            f"{model.shortened:,} requests were longer than data.sequence_length {length} allows, "
            f"and lost their first tokens"
        )
    facts = {"lm_eval_version": version("lm_eval"), "shortened_requests": model.shortened}
    return {
        f"lm_eval:{task}": _result(
            metrics,
            {
                "samples": metrics.get("sample_len"),
                "num_fewshot": found["n-shot"].get(task),
                "task_version": found["versions"].get(task),
                **facts,
            },
        )
        for task, metrics in found["results"].items()
    }


def _result(metrics: dict[str, Any], facts: dict[str, Any]) -> Result:
    """The result from the harness's keys, `acc,none` and `acc_stderr,none`; `none` is no filter."""
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in metrics.items():
        name, comma, filter_name = key.partition(",")
        if not comma or not isinstance(value, (int, float)):
            continue  # a name, a count, or "N/A"
        label = name.removesuffix("_stderr") + ("" if filter_name == "none" else f",{filter_name}")
        (errors if name.endswith("_stderr") else values)[label] = float(value)
    return Result(values, errors, facts)
