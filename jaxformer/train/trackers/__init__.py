"""Trackers: metrics.jsonl, shown elsewhere during a run.

A tracker is the module here of its name, with `PACKAGES` that it needs, `check` and `start`, and
its name in `config.trackers`.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.config import RunConfig
from jaxformer.errors import UserError
from jaxformer.train.metrics import read_rows
from jaxformer.train.trackers.base import BEFORE_ALL, Ids, TrackedRun, Tracker
from jaxformer.train.trackers.follower import Follower, next_position


class TrackerModule(Protocol):
    """What a module of a tracker has."""

    PACKAGES: tuple[str, ...]

    def check(self, directory: Path) -> None:
        """Raises UserError if the tracker cannot work with the environment as it is; writes and
        asks nothing, and uses no network."""

    def start(self, run: TrackedRun) -> Tracker: ...


def check_trackers(run: RunConfig, directory: Path) -> None:
    """Check that every tracker is installed and has what it needs.

    Raises:
        UserError: one is not, or has not; the message says how to mend it.
    """
    for name in run.trackers:
        module = _module(name)
        missing = [package for package in module.PACKAGES if not _is_installed(package)]
        if missing:
            raise UserError(
                f"run.trackers has {name}, which needs the package {missing[0]}: "
                f'pip install "jaxformer[{name}]", or leave it out'
            )
        module.check(directory)


def start_trackers(
    run: RunConfig,
    directory: RunDirectory,
    manifest: dict[str, Any],
    resumed_step: int,
    say: Callable[[str], None],
) -> list[Follower]:
    """Start to follow metrics.jsonl, as it is after the run was begun or resumed."""
    past, last_row = read_rows(directory.metrics), BEFORE_ALL
    for row in past:
        last_row = next_position(last_row, row)
    tracked = TrackedRun(
        directory=directory.path,
        name=name_of(directory.path, run.group),
        group=run.group,
        configuration=_configuration(manifest),
        resumed_step=resumed_step,
        last_row=last_row,
        ids=Ids(directory.trackers, resumes=resumed_step > 0),
        say=say,
    )
    return [
        Follower(name, partial(_module(name).start, tracked), past)
        for name in dict.fromkeys(run.trackers)
    ]


def name_of(directory: Path, group: str | None) -> str:
    """The folder's name, or its path below the nearest folder that is named as the group."""
    parts = directory.parts if "://" in str(directory) else directory.absolute().parts
    if group not in parts[:-1]:
        return parts[-1]
    below = parts[::-1].index(group, 1)
    return "/".join(parts[-below:])


def _configuration(manifest: dict[str, Any]) -> dict[str, Any]:
    """The run's configuration, and what else of its manifest others are compared by."""
    facts = ("parameters", "mesh", "versions", "git_revision")
    return manifest["config"] | {name: manifest[name] for name in facts}


def _module(name: str) -> TrackerModule:
    return cast(TrackerModule, import_module(f"{__name__}.{name}"))


def _is_installed(package: str) -> bool:
    """A folder of that name, which some trackers make where they run, is no package."""
    found = find_spec(package)
    return found is not None and found.origin is not None
