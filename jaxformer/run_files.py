"""The names of the files in a run's directory, and how its configuration is read there.

A run keeps copies of what its commands need besides the data: the files of its tokenizer in
`tokenizer/`; if it trains adapters, the weights under them in `base/`; if it has a teacher, its
weights in `teacher/`. `base/` and `teacher/` are laid out as runs. `config.yaml` names the
originals. When it is read, its keys refer to the copies and to the directory that it is in, so a
run can be moved, renamed and copied.
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
TRACKERS = "trackers.json"
TOKENIZER = "tokenizer"
BASE = "base"
TEACHER = "teacher"
DEFINITION = "tokenizer.json"
CLASSES = "classes.json"
CHARACTERS = "characters.json"
PROFILE = "profile"  # of its folders, one per profile:
PROGRAM = "program.txt.gz"
TRACES = "plugins/profile/steps"

# A folder of configurations has none of these. It may have a folder `checkpoints/`, but no steps
# in it.
ONLY_IN_RUNS = (MANIFEST, METRICS, OWNER)

Json = dict[str, Any]


def is_run(folder: Path) -> bool:
    """Whether a run has begun there; a `config.yaml` alone does not make a run."""
    try:
        if not (folder / CONFIG).is_file():
            return False
        steps = folder / CHECKPOINTS
        return any((folder / name).exists() for name in ONLY_IN_RUNS) or (
            steps.is_dir() and any(each.name.isdecimal() for each in steps.iterdir())
        )
    except OSError:  # unreadable: whoever opens the file says why
        return False


def needs_no_files(tokenizer: str) -> bool:
    return tokenizer == "bytes" or tokenizer.startswith(("ids:", "classes:"))


def own_tokenizer(folder: Path, name: object) -> Path | None:
    """The run's copy of the tokenizer `name`; None if it needs none, or has none yet."""
    if not isinstance(name, str) or needs_no_files(name):
        return None
    if any((folder / TOKENIZER / file).is_file() for file in (DEFINITION, CLASSES, CHARACTERS)):
        return folder / TOKENIZER
    # Where `import` once put it, before `tokenizer/` existed.
    beside = folder / DEFINITION
    return beside if name.endswith(f"/{DEFINITION}") and beside.is_file() else None


# By the folder of the copy, the key of config.yaml that names the run whose weights are copied.
KEPT_RUNS = {BASE: ("init", "from"), TEACHER: ("train", "objective", "teacher")}


def own_run(folder: Path, name: str) -> Path | None:
    """The copy of another run's weights in the folder `name`; None if there is none (yet)."""
    copy = folder / name
    return copy if (copy / CONFIG).is_file() else None


def in_place(data: Json, folder: Path) -> Json:
    """A run's `config.yaml` with its keys referring to `folder`, where the run is now."""
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
