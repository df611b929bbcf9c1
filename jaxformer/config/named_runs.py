"""The other runs that a configuration names, of which a run may keep copies; see `run_files`."""

from collections.abc import Mapping

from jaxformer.config import Config
from jaxformer.run_files import BASE, TEACHER


def named_runs(config: Config) -> dict[str, str]:
    """The paths of the runs that are given, by the name of the folder for each copy."""
    places = {BASE: config.init.source, TEACHER: config.train.objective.reference}
    return {folder: path for folder, path in places.items() if path is not None}


def with_named_runs(config: Config, places: Mapping[str, str]) -> Config:
    """The configuration with other paths for some of the runs that it names."""
    start, train = config.init, config.train
    if BASE in places:
        start = start.model_copy(update={"source": places[BASE]})
    if TEACHER in places:
        objective = train.objective.model_copy(update={"teacher": places[TEACHER]})
        train = train.model_copy(update={"objective": objective})
    return config.model_copy(update={"init": start, "train": train})
