"""What lies in a run's directory, by name, and what a configuration there means.

A run keeps copies of what its commands need besides the data: the files of its tokenizer in
`tokenizer/`; where it trains adapters, the weights under them in `base/`; where it has a teacher,
its weights in `teacher/`, which is laid out as a run, as `base/` is. `config.yaml` names what these
are copies of. Read where it lies, it means the copies, and the directory in which it lies; so a run
can be moved, renamed and copied.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIG = "config.yaml"
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
OWNER = "writer.json"
TOKENIZER = "tokenizer"
BASE = "base"
TEACHER = "teacher"
DEFINITION = "tokenizer.json"

# A folder of configurations has none of these; and no step in `checkpoints/`, though a project
# may have a folder of that name.
ONLY_IN_RUNS = (MANIFEST, METRICS, OWNER)

Json = dict[str, Any]


def is_run(folder: Path) -> bool:
    """Whether a run has begun there; a folder that only has a `config.yaml` is none."""
    try:
        if not (folder / CONFIG).is_file():
            return False
        steps = folder / CHECKPOINTS
        return any((folder / name).exists() for name in ONLY_IN_RUNS) or (
            steps.is_dir() and any(each.name.isdecimal() for each in steps.iterdir())
        )
    except OSError:  # not to be read: whoever opens the file says why
        return False


def needs_no_files(tokenizer: str) -> bool:
    return tokenizer == "bytes" or tokenizer.startswith("ids:")


def own_tokenizer(folder: Path, name: object) -> Path | None:
    """The copy of the tokenizer `name`; None where there is none to have, or none yet."""
    if not isinstance(name, str) or needs_no_files(name):
        return None
    if (folder / TOKENIZER / DEFINITION).is_file():
        return folder / TOKENIZER
    # Where `import` put it before there was a folder for it.
    beside = folder / DEFINITION
    return beside if name.endswith(f"/{DEFINITION}") and beside.is_file() else None


# Where config.yaml names a run whose weights may be kept, by the folder of the copy.
KEPT_RUNS = {BASE: ("init", "from"), TEACHER: ("train", "objective", "teacher")}


def own_run(folder: Path, name: str) -> Path | None:
    """The copy of another run's weights in the folder `name`; None where there is none (yet)."""
    copy = folder / name
    return copy if (copy / CONFIG).is_file() else None


def in_place(data: Json, folder: Path) -> Json:
    """The keys of a run's `config.yaml` as they are meant in `folder`, where it lies now."""
    data = _with(data, ("run", "dir"), folder)
    tokenizer = own_tokenizer(folder, _get(data, ("data", "tokenizer")))
    if tokenizer is not None:
        data = _with(data, ("data", "tokenizer"), tokenizer)
    for name, keys in KEPT_RUNS.items():
        copy = own_run(folder, name)
        if copy is not None and _get(data, keys) is not None:
            data = _with(data, keys, copy)
    return data


def _get(data: object, keys: Sequence[str]) -> object:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _with(data: Json, keys: Sequence[str], path: Path) -> Json:
    key, *below = keys
    if not below:
        return {**data, key: os.fspath(path)}
    section = data.get(key) or {}
    if not isinstance(section, dict):  # a mistake, which validation names
        return data
    return {**data, key: _with(section, below, path)}
