"""The paths on this machine's disks that a configuration names, wherever they are in it."""

import os
from collections.abc import Callable

from jaxformer.config import Config, SourceConfig
from jaxformer.config.data import FILES, DeduplicateConfig
from jaxformer.config.data_kinds import CHARACTERS, names_classes
from jaxformer.config.named_runs import named_runs, with_named_runs
from jaxformer.run_files import needs_no_files
from jaxformer.storage import is_url

Change = Callable[[str], str]


def made_absolute(config: Config) -> Config:
    """The same with absolute paths; `~` stays, because it differs between machines."""
    return _changed(config, lambda path: path if path.startswith("~") else os.path.abspath(path))


def as_they_are_here(config: Config) -> Config:
    """The same with absolute paths and `~` expanded: two that name the same files are equal."""
    return _changed(config, lambda path: os.path.abspath(os.path.expanduser(path)))


def _changed(config: Config, change: Change) -> Config:
    data, run = config.data, config.run
    of_data: dict[str, object] = {
        "source": _sources(data.source, change),
        "stages": data.stages
        and tuple(
            stage.model_copy(update={"source": stage.source and _sources(stage.source, change)})
            for stage in data.stages
        ),
        "validation_source": data.validation_source and _source(data.validation_source, change),
        "tokenizer": _tokenizer(data.tokenizer, change),
        "deduplicate": data.deduplicate and _against(data.deduplicate, change),
        "store_dir": data.store_dir and _at(data.store_dir, change),
        "cache_dir": change(data.cache_dir),
    }
    tasks_dir = config.eval.tasks_dir
    local = config.checkpoint.local
    runs = {folder: _at(path, change) for folder, path in named_runs(config).items()}
    return with_named_runs(config, runs).model_copy(
        update={
            "data": data.model_copy(update=of_data),
            "checkpoint": config.checkpoint.model_copy(update={"local": local and change(local)}),
            "eval": config.eval.model_copy(update={"tasks_dir": tasks_dir and change(tasks_dir)}),
            "run": run.model_copy(update={"dir": _at(run.dir, change)}),
        }
    )


def _tokenizer(name: str, change: Change) -> str:
    is_word = needs_no_files(name) or names_classes(name) or name == CHARACTERS
    return name if is_word or not _is_there(name) else change(name)


def _sources(given: str | tuple[SourceConfig, ...], change: Change) -> object:
    if isinstance(given, str):
        return _source(given, change)
    return tuple(
        entry.model_copy(update={"source": _source(entry.source, change)}) for entry in given
    )


def _against(config: DeduplicateConfig, change: Change) -> DeduplicateConfig:
    against = config.against and _source(config.against, change)
    return config.model_copy(update={"against": against})


def _source(name: str, change: Change) -> str:
    kind, colon, where = name.partition(":")
    files = kind in (*FILES, "store", "imagefolder", "audiofolder") and not is_url(where)
    folder = kind == "hf" and (_is_there(where) or _is_there(where.partition(":")[0]))
    return f"{kind}{colon}{change(where)}" if files or folder else name


def _at(place: str, change: Change) -> str:
    return place if is_url(place) else change(place)


def _is_there(name: str) -> bool:
    """Whether it is a path on this machine, not a name on the Hub."""
    return os.path.exists(os.path.expanduser(name))
