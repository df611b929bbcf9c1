"""A folder of tasks for lm-evaluation-harness, which may hold data and templates, but no code.

The harness would import what a YAML file calls `!function`, instantiate a `class`, and download and
run a metric that it does not know. Here a folder is configuration, which runs nothing.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval.utils
from jinja2.sandbox import SandboxedEnvironment
from lm_eval.api.registry import metric_registry
from lm_eval.tasks import TaskManager

from jaxformer.errors import UserError, did_you_mean
from jaxformer.reading import read_text
from jaxformer.schema.yaml_reader import read_yaml


def read_task_folder(folder: Path) -> TaskManager:
    """The tasks of a folder, without those of the harness.

    Raises:
        UserError: it has no YAML, or a file in it is malformed or would run code.
    """
    files = sorted(folder.rglob("*.yaml"))
    if not files:
        raise UserError(f"tasks folder {folder}: no file in it ends in .yaml")
    for file in files:
        _check(file, folder.resolve())
    _use_sandbox()
    return TaskManager(include_path=str(folder), include_defaults=False)


def _check(file: Path, folder: Path) -> None:
    try:
        data = read_yaml(read_text(file), str(file)).data
    except UserError as error:
        raise UserError(f"{error}. A task file is plain YAML, without !function") from error
    for key, value in _entries(data):
        if key == "class":
            raise UserError(f"{file}: class '{value}' would run Python; use templates instead")
        if key == "metric" and value not in metric_registry:
            raise UserError(
                f"{file}: metric '{value}' is not one of the harness's own; allowed: "
                f"{', '.join(sorted(metric_registry))}.{did_you_mean(str(value), metric_registry)}"
            )
        if key == "hf_evaluate" and value:
            raise UserError(f"{file}: hf_evaluate would run a program from the Hub; leave it out")
        if key == "include":
            for name in value if isinstance(value, list) else [value]:
                _check_included((file.parent / str(name)).resolve(), file, folder)


def _check_included(included: Path, file: Path, folder: Path) -> None:
    if not included.is_relative_to(folder):
        raise UserError(f"{file}: include '{included}' is not in {folder}; copy it there")
    if included.suffix != ".yaml":  # all .yaml files are checked anyway
        _check(included, folder)


def _entries(data: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    if isinstance(data, dict):
        yield from data.items()
        data = list(data.values())
    if isinstance(data, list):
        for item in data:
            yield from _entries(item)


def _use_sandbox() -> None:
    """Run templates in a sandbox, where they reach no attribute outside of their data."""
    plain = lm_eval.utils.env
    sandbox = SandboxedEnvironment(
        loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=True
    )
    sandbox.filters.update(plain.filters)
    lm_eval.utils.env = sandbox
