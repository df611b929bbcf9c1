"""The steps of a run as they lie on the disk, whole or not."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxformer.checkpoint import integrity
from jaxformer.checkpoint.integrity import ASIDE, DamagedError, Fault, Json, read_manifest
from jaxformer.checkpoint.run_directory import RunDirectory, is_finished, locate
from jaxformer.errors import UserError
from jaxformer.paths import file_sizes

Health = Literal["complete", "unverified", "damaged", "incomplete", "other format"]


@dataclass(frozen=True)
class Step:
    """A folder of `checkpoints/`. Complete: every file has the right hash; unverified: size."""

    folder: Path
    health: Health
    bytes: int
    faults: list[Fault]
    manifest: Json | None  # if complete or unverified

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def is_good(self) -> bool:
        return self.manifest is not None

    @property
    def is_named(self) -> bool:
        """Whether it can be chosen: one that was set aside, or not finished, cannot."""
        return self.name.isdecimal()

    @property
    def number(self) -> int:
        return int(self.name.partition(".")[0])

    @property
    def loss(self) -> float | None:
        return self.manifest["metrics"]["eval/loss"] if self.manifest else None


def look_at(folder: Path, *, hashes: bool) -> Step:
    """Check the folder by its files' sizes, or by their hashes too."""
    size = sum(file_sizes(folder).values())
    if not (ASIDE in folder.name or is_finished(folder)):
        return Step(folder, "incomplete", size, [], None)
    compare = integrity.wrong_hashes if hashes else integrity.wrong_sizes
    try:
        manifest = read_manifest(folder)
        if faults := compare(folder, manifest["files"]):
            return Step(folder, "damaged", size, faults, None)
    except DamagedError as error:
        there = (folder / integrity.MANIFEST).exists()
        return Step(folder, "damaged" if there else "incomplete", size, error.faults, None)
    except UserError as error:
        fault = Fault(integrity.MANIFEST, f"format {integrity.FORMAT}", str(error))
        return Step(folder, "other format", size, [fault], None)
    return Step(folder, "complete" if hashes else "unverified", size, [], manifest)


def steps_of(path: Path, *, hashes: bool = False) -> tuple[RunDirectory, list[Step]]:
    """The run of a path, and its steps in rising order, or the one that the path names.

    Raises:
        UserError: no run, or nothing saved.
    """
    if names_step(path):
        return RunDirectory(path.parent.parent), [look_at(path, hashes=hashes)]
    directory, _ = locate(path)
    folder = directory.checkpoints
    there = [each for each in folder.iterdir() if each.is_dir()] if folder.is_dir() else []
    found = [each for each in there if each.name.partition(".")[0].isdecimal()]
    if not found:
        raise directory.without_checkpoint()
    found.sort(key=lambda each: (int(each.name.partition(".")[0]), each.name))
    return directory, [look_at(each, hashes=hashes) for each in found]


def names_step(path: Path) -> bool:
    return path.parent.name == "checkpoints" and path.is_dir()


def newest_of(path: Path) -> Step:
    """The step that the path names, or the newest of its run that looks good.

    Raises:
        DamagedError: the one named is damaged.
        UserError: there is none.
    """
    directory, steps = steps_of(path)
    good = [step for step in steps if step.is_good and (step.is_named or names_step(path))]
    if good:
        return good[-1]
    if steps[-1].faults:
        raise DamagedError(steps[-1].folder, steps[-1].faults)
    raise directory.without_checkpoint()


def best_of(steps: list[Step]) -> Step | None:
    """The step with the lowest loss on the validation text."""
    ranked = [step for step in steps if step.is_good and step.is_named and step.loss is not None]
    return min(ranked, key=lambda step: step.loss or math.inf, default=None)
