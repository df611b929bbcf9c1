"""Load a checked `Config` from a configuration file or a run."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jaxformer.config import Config
from jaxformer.paths import is_remote, locate_path
from jaxformer.run_files import CONFIG, in_place, is_run
from jaxformer.schema.loading import load_as
from jaxformer.schema.overrides import parse_override


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the configuration file at `path`, apply the overrides, and check the result.

    In a run's file, `run.dir` means the directory where the file is now, and the copies that the
    run keeps there replace their originals (see `run_files`). Overrides take precedence over that.

    Args:
        path: a YAML file, whose keys are those of `Config`; or a run directory, for its own.
        overrides: `key.path=value` each, the value in YAML; `model.pattern.0.mixer.window=64`
            reaches into lists, and `optimizer={kind: sgd}` replaces a whole section.

    Raises:
        UserError: with one line for every mistake.
    """
    file = locate_path(path)
    if is_run(file):
        file = file / CONFIG
    if file.name != CONFIG or not is_run(file.parent):
        return load_as(Config, path, overrides)
    folder = file.parent if is_remote(file) else file.parent.resolve()
    given = dict(map(parse_override, overrides))
    if ("run",) in given and ("run", "dir") not in given and "dir" not in (given["run",] or {}):
        # The whole section is replaced, but the run is still the same.
        overrides = [*overrides, f"run.dir={json.dumps(str(folder), ensure_ascii=False)}"]
    return load_as(Config, file, overrides, partial(in_place, folder=folder))
