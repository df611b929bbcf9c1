"""Copies of a run's newest states on the local disks of its hosts, for when one of them fails.

    FOLDER/RUN/process_I/STEP/    what process I held at STEP
        shards.safetensors        see `shards`
        manifest.json             written last, with the hash of the other; see `integrity`

`RUN` is the run's name in its `lineage`. Saving takes as long as copying the arrays to the host:
they are written in the background, no process waits for another, and nothing is sent. A process
keeps its newest two steps, since at the newest the others may not be done yet.

When the run starts again, the processes tell each other what they have. Of a step, every process
needs what it held; where its copy is gone, others hold the same parts if the mesh has replicas, and
pass them on through the run's directory. What is used has the right hash, is in the run's past, and
is of the same configuration, data, mesh and number of processes; or else the run's checkpoint is
used.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxformer.checkpoint import integrity
from jaxformer.checkpoint.integrity import Json, read_manifest
from jaxformer.checkpoint.interop.safetensors import read_header
from jaxformer.checkpoint.lineage import Lineage
from jaxformer.checkpoint.passing_on import PASSING, SHARDS, Copy, given, intact_plan, pass_on
from jaxformer.checkpoint.run_directory import RunDirectory, changed_keys, flat
from jaxformer.checkpoint.shards import (
    Trees,
    copied_shards,
    join_shards,
    parts_of,
    write_shards,
)
from jaxformer.errors import UserError
from jaxformer.parallel import processes
from jaxformer.paths import local_path, remove_tree
from jaxformer.storage import Place
from jaxformer.terminal import say

KEPT = 2
UNFINISHED = ".unfinished"  # the end of a folder's name, until it is complete
COMMON = "passed_on"  # a folder in the run's directory, while processes pass parts on


@dataclass(frozen=True)
class Restored:
    """A state of the run: its arrays, and how far it was (see `Checkpoints`)."""

    step: int
    arrays: dict[str, Any]
    progress: Json


class LocalCopies:
    """This process's copies, in `folder` of its host."""

    def __init__(self, folder: str, directory: RunDirectory) -> None:
        """All processes call this together.

        Raises:
            UserError: the folder cannot be written.
        """
        self._directory, self._lineage = directory, Lineage(directory.path)
        self._root = local_path(folder) / self._lineage.name
        self._own = self._root / f"process_{processes.index()}"
        self._writing: threading.Thread | None = None
        try:
            self._own.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"checkpoint.local {folder} cannot be written: {error.strerror}; give a folder on "
                f"a disk of this host"
            ) from error

    def begin(self, step: int) -> None:
        """The run goes on from `step`."""
        self._lineage.begin(step)
        self._remove_unfinished()

    def save(self, step: int, trees: Trees, progress: Json, manifest: Json) -> None:
        """Copy the arrays to the host, and write them in the background; waits for an earlier write
        first."""
        self.wait()
        told = {
            **_identity(manifest),
            "step": step,
            "start": self._lineage.now,
            "process": processes.index(),
            "state": progress,
        }
        write = threading.Thread(
            target=self._write, args=(step, copied_shards(trees), told), daemon=True
        )
        write.start()
        self._writing = write

    def _write(self, step: int, shards: Mapping[str, Any], told: Json) -> None:
        unfinished, final = self._own / f"{step}{UNFINISHED}", self._own / str(step)
        try:
            remove_tree(unfinished)
            unfinished.mkdir()
            write_shards(unfinished / SHARDS, shards)
            integrity.seal(unfinished, told)
            remove_tree(final)
            unfinished.rename(final)
            self._remove_old()
        except OSError as error:
            remove_tree(unfinished)
            say(f"warning: no local copy of step {step} in {self._own}: {error.strerror}")

    def _remove_old(self) -> None:
        steps = {step: folder for step, folder in _steps(self._own) if self._is_past(folder)}
        keep = sorted(steps)[-KEPT:]
        for step, folder in list(_steps(self._own)):
            if step not in keep:
                remove_tree(folder)

    def _is_past(self, folder: Path) -> bool:
        try:
            told = read_manifest(folder)
        except UserError:
            return False
        return self._lineage.has(told["start"], told["step"])

    def wait(self) -> None:
        """Wait until what was saved is on the disk, or a warning said why not."""
        if self._writing is not None:
            self._writing.join()

    def remove(self) -> None:
        """Remove this process's copies, once the run needs them no more."""
        self.wait()
        remove_tree(self._own)

    def newest(self, after: int, manifest: Json, wanted: Trees) -> Restored | None:
        """The newest step after `after` that the processes have between them, or None. What stands
        in the way of a newer one is said. All processes call this together.

        Args:
            manifest: what the run is now.
            wanted: trees of ShapeDtypeStruct with shardings.
        """
        found = self._found(after, manifest)
        told = processes.gather([[step, sorted(held)] for step, held in found.items()])
        kept = {
            step: {
                Copy(process, held_by)
                for process, steps in enumerate(told)
                for each, all_held in steps
                if each == step
                for held_by in all_held
            }
            for step in {step for steps in told for step, _ in steps}
        }
        for step in sorted(kept, reverse=True):
            restored = self._restore(step, kept[step], found.get(step, {}), wanted)
            if restored is not None:
                return restored
        return None

    def _found(self, after: int, manifest: Json) -> dict[int, dict[int, Path]]:
        """By step, the folders on this host, each by the process whose parts it has."""
        found: dict[int, dict[int, Path]] = {}
        now = _identity(manifest)
        for step, folder in [each for own in self._root.iterdir() for each in _steps(own)]:
            if step <= after:
                continue
            try:
                told = read_manifest(folder)
            except UserError as error:
                say(f"warning: {error}")
                continue
            if told["step"] != step or not self._lineage.has(told["start"], step):
                continue
            if changed := _changes(told, now):
                say(f"the local copy {folder} is not used: {', '.join(changed)} changed since")
                continue
            found.setdefault(step, {})[told["process"]] = folder
        return found

    def _restore(
        self, step: int, kept: set[Copy], here: Mapping[int, Path], wanted: Trees
    ) -> Restored | None:
        """The step, if the copies `kept` are enough and those that are needed are intact."""
        me, common = processes.index(), self._directory.path / COMMON
        plan = intact_plan(kept, here, parts_of(wanted))
        if plan is None:
            _tell(
                f"the local copies of step {step} are not complete: what a process held is on no "
                f"disk that is left"
            )
            return None
        tensors = {held_by: read_header(here[held_by] / SHARDS) for held_by in given(plan, me)}
        passed = pass_on(plan, tensors, self._own, Place(str(common)))
        processes.first_alone(f"passed on {step}", lambda: remove_tree(common))
        if passed is None:
            _tell(f"the local copies of step {step} are not used: one was damaged on its way")
            return None
        own = {
            name: tensors[copy.held_by][name]
            for name, copy in plan[me].items()
            if copy.kept_by == me
        }
        arrays = jax.block_until_ready(join_shards(wanted, {**own, **passed}))
        self._remove_unfinished()
        teller = min(copy.kept_by for copy in kept)
        told = read_manifest(next(iter(here.values())))["state"] if me == teller else None
        return Restored(step, arrays, processes.told_by(teller, told))

    def _remove_unfinished(self) -> None:
        """What an interrupted write or a restore has left."""
        for each in [*self._own.glob(f"*{UNFINISHED}"), *self._own.glob(f"*{PASSING}")]:
            remove_tree(each) if each.is_dir() else each.unlink()


def _tell(text: str) -> None:
    if processes.is_first():
        say(text)


def _steps(folder: Path) -> Iterator[tuple[int, Path]]:
    for each in folder.iterdir():
        if each.name.isdecimal():
            yield int(each.name), each


def _identity(manifest: Json) -> Json:
    """What must not have changed since a copy was made."""
    return {
        "config": manifest["config"],
        "data": manifest["data"],
        "tokenizer": manifest["tokenizer"]["fingerprint"],
        "mesh": manifest["mesh"],
        "processes": processes.count(),
    }


def _changes(told: Json, now: Json) -> list[str]:
    parts = [name for name in ("data", "tokenizer", "mesh", "processes") if told[name] != now[name]]
    keys = changed_keys(flat(told["config"]), flat(now["config"]))
    steps = [each["config"]["train"]["steps"] for each in (told, now)]
    return [*parts, *keys, *(["train.steps"] if steps[0] != steps[1] else [])]
