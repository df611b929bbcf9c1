"""Checkpoints of a run, written by Orbax in the background."""

import errno
import itertools
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from jaxformer.checkpoint import integrity
from jaxformer.checkpoint.integrity import ASIDE, DamagedError, Fault, read_manifest
from jaxformer.checkpoint.manifest import check_same_tree, describe
from jaxformer.errors import RunFailed, UserError
from jaxformer.parallel import processes
from jaxformer.parallel.mesh import find_devices
from jaxformer.paths import is_remote
from jaxformer.terminal import say

OS_REASONS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
CHUNK = 1 << 23  # bytes of an array that are read or written as one, on any mesh
FIRST_WORDS = 300  # characters of an error message, which may be pages long

PyTree = Any
Json = integrity.Json


class Checkpoints:
    """The folder `checkpoints/` of a run: one folder per step, complete or absent.

    A step holds trees of arrays (`params`, `opt_state`, and `ema` where one is kept) and its
    manifest (see `integrity`): what was saved, the trees' paths with shapes and dtypes, the state
    (step, place in the data, skipped updates in a row), and every file's hash, which is compared
    before anything is read. The newest `keep_newest` steps are kept and, apart from them, the
    `keep_best` with the lowest eval/loss and all multiples of `keep_every`. A damaged step counts
    as none of these, and is never deleted.
    """

    def __init__(
        self,
        directory: Path,
        keep_newest: int = 1,
        keep_best: int = 0,
        keep_every: int | None = None,
        *,
        read_only: bool = False,
    ) -> None:
        """Open the folder, and clear away what an interrupted save has left there, unless
        `read_only`: then another process may be saving.

        Raises:
            UserError: a step has a format that this version does not read.
        """
        self.directory = directory if is_remote(directory) else directory.resolve()
        self._read_only = read_only
        self._retention = Retention(keep_newest, keep_best, keep_every)
        self._damaged: dict[int, DamagedError] = {}
        self._verified: set[int] = set()
        self._unsealed: tuple[int, Json] | None = None
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # what fails is raised
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            create=not self._read_only,
            read_only=self._read_only,
            preservation_policy=self._retention,
            cleanup_tmp_directories=not self._read_only,
            lightweight_initialize=True,  # the manifests have what it would read
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        find_devices()  # Orbax asks for them
        manager = ocp.CheckpointManager(self.directory, options=options)
        for step in manager.all_steps():
            self._look_at(step)
        return manager

    def _look_at(self, step: int) -> None:
        """Check a step's manifest and file sizes, without reading its arrays."""
        folder = self.directory / str(step)
        try:
            manifest = read_manifest(folder)
            if faults := integrity.wrong_sizes(folder, manifest["files"]):
                raise DamagedError(folder, faults)
            self._retention.losses[step] = manifest["metrics"]["eval/loss"]
        except DamagedError as error:
            self._damaged[step] = error

    def __enter__(self) -> Self:
        self._hook = sys.unraisablehook
        sys.unraisablehook = partial(_without_echoes, self._hook)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.wait()
            with self._told():
                self._manager.close()
        finally:
            sys.unraisablehook = self._hook

    def steps(self) -> list[int]:
        """Steps that are not known to be damaged, in rising order."""
        return sorted(set(self._manager.all_steps()) - self._damaged.keys())

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def newest_good(self) -> int | None:
        """The newest step whose files have the hashes of its manifest; None if no step was saved.

        Newer, damaged steps are reported and, unless `read_only`, renamed, so that these steps can
        be saved again. All processes must call this together, and get the same step.

        Raises:
            UserError: every step is damaged.
        """
        steps = processes.gather(sorted(self._manager.all_steps()))[0]
        damaged = {}
        for step in reversed(steps):
            try:
                self.verify(step)
            except DamagedError as error:
                damaged[step] = error
                continue
            if damaged:
                self._pass_over(damaged, step)
            return step
        if damaged:
            raise UserError(
                f"every checkpoint in {self.directory} is damaged ({', '.join(map(str, steps))}); "
                f"restore one from a backup, or give another run.dir to start again; to see "
                f"every fault: jaxformer checkpoint verify {self.directory.parent}"
            )
        return None

    def _pass_over(self, damaged: Mapping[int, DamagedError], good: int) -> None:
        if processes.is_first():
            for step, error in damaged.items():
                kept = "" if self._read_only else f" (it is now {self._set_aside(step)})"
                say(f"warning: {error}; step {good} is used, and nothing is deleted{kept}")
        if not self._read_only:
            processes.gather(None)  # the others open the folder as it is now
            self._manager.close()
            self._damaged = {}
            self._manager = self._open()

    def _set_aside(self, step: int) -> Path:
        names = (f"{step}{ASIDE}{number or ''}" for number in itertools.count())
        aside = next(name for name in names if not (self.directory / name).exists())
        return (self.directory / str(step)).rename(self.directory / aside)

    def verify(self, step: int) -> None:
        """Compare every file of the step with its hash; each process reads a share of them.

        Raises:
            DamagedError: with every fault.
        """
        if step in self._verified:
            return
        self.wait()
        folder = self.directory / str(step)
        found = [fault for each in processes.gather(_faults(folder)) for fault in each]
        if found:
            faults = sorted({Fault(*each) for each in found})
            self._damaged[step] = DamagedError(folder, faults)
            self._retention.losses.pop(step, None)
            raise self._damaged[step]
        self._verified.add(step)

    def save(
        self,
        step: int,
        trees: Mapping[str, PyTree],
        state: Json,
        manifest: Json,
        eval_loss: float | None,
    ) -> None:
        """Copy the arrays to the host, then write them in the background.

        Waits for an earlier save first.

        Raises:
            RunFailed: the earlier save failed, or this one cannot begin.
        """
        self.wait()
        ranked = eval_loss is not None and math.isfinite(eval_loss)
        self._unsealed = (
            step,
            {
                **manifest,
                "step": step,
                "saved_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "metrics": {"eval/loss": eval_loss if ranked else None},
                "state": state,
                "trees": {name: describe(tree) for name, tree in trees.items()},
            },
        )
        self._retention.losses[step] = eval_loss if ranked else None
        small = ocp.SaveArgs(chunk_byte_size=CHUNK)
        items = {
            name: ocp.args.StandardSave(tree, jax.tree.map(lambda leaf: small, tree))
            for name, tree in trees.items()
        }
        with self._told():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def _seal(self) -> None:
        """Write the manifest: called by Orbax in its thread, in process 0, when all processes have
        written everything and before the folder has its name."""
        assert self._unsealed is not None
        step, manifest = self._unsealed
        final = self.directory / str(step)  # where a bucket has it, from the beginning
        unnamed = self.directory.glob(f"{step}{ocp.utils.TMP_DIR_SUFFIX}*")
        integrity.seal(next(iter(unnamed), final), manifest)

    def raise_failed_save(self) -> None:
        """Raise the error of a failed background save; returns at once while a save is running.

        Raises:
            RunFailed: with the reason.
        """
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Wait until what was saved is on the disk.

        Raises:
            RunFailed: it could not be written; earlier steps are as they were.
        """
        with self._told():
            self._manager.wait_until_finished()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say of any error of a disk or a bucket which step is lost, and which is there. Orbax
        raises it where it starts a save, where it waits for one, or where it closes."""
        try:
            yield
        except Exception as error:
            if self._unsealed is None:
                raise
            step, _ = self._unsealed
            there = {int(each.name) for each in self.directory.iterdir() if each.name.isdecimal()}
            good = max(there - {step, *self._damaged}, default=None)
            raise RunFailed(
                f"step {step} could not be saved in {self.directory}: {_reason(error)}. "
                f"The newest checkpoint is {'none' if good is None else f'that of step {good}'}; "
                f"fix the cause, and run the same command again to resume"
            ) from error

    def manifest(self, step: int) -> Json:
        """The manifest of `step`; raises DamagedError, or UserError for an unknown format."""
        self.wait()
        return read_manifest(self.directory / str(step))

    def state(self, step: int) -> Json:
        """Step, place in the data, skipped updates in a row."""
        return self.manifest(step)["state"]

    def restore(self, step: int, wanted: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """The named trees, placed as `wanted` says: trees of ShapeDtypeStruct with shardings.

        Raises:
            DamagedError: a file is not what was saved.
            UserError: a tree that was not saved, or not with these paths, shapes and dtypes.
        """
        self.verify(step)
        where, saved = self.directory / str(step), self.manifest(step)["trees"]
        for name, tree in wanted.items():
            if name not in saved:
                raise UserError(f"{where} has no '{name}'; it has {', '.join(saved)}")
            check_same_tree(name, where, saved[name], tree)
        arguments = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**arguments))
        return {name: restored[name] for name in wanted}


class Retention:
    """Which steps are kept: of those in `losses`, the newest and, apart from them, the best and the
    multiples of a number. A step that is not in `losses` is damaged: it is kept, and counts as none
    of these."""

    def __init__(self, keep_newest: int, keep_best: int, keep_every: int | None) -> None:
        self._keep_newest, self._keep_best = keep_newest, keep_best
        self._keep_every = keep_every
        self.losses: dict[int, float | None] = {}  # by step; None: not evaluated, or not finite

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which checkpoints to keep; Orbax passes them in rising order."""
        good = [info.step for info in checkpoints if info.step in self.losses]
        ranked = {step: loss for step in good if (loss := self.losses[step]) is not None}
        newest = good[-self._keep_newest :]
        best = sorted(ranked, key=ranked.__getitem__)[: self._keep_best]
        multiples = [step for step in good if self._keep_every and step % self._keep_every == 0]
        gone = set(good) - {*newest, *best, *multiples}
        return [info.step not in gone for info in checkpoints]


def placed(abstract: PyTree, shardings: PyTree) -> PyTree:
    """ShapeDtypeStructs that say where to place each array."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )


def _without_echoes(hook: Callable[[Any], Any], unraisable: Any) -> None:
    """Hide the tracebacks of a save's other writes after one has failed: that one is raised, and
    the others only find their event loop closed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)


def _faults(folder: Path) -> list[Fault]:
    """The faults in this process's share of the files."""
    try:
        files = read_manifest(folder)["files"]
    except DamagedError as error:
        return error.faults
    mine = sorted(files)[processes.index() :: processes.count()]
    return integrity.wrong_hashes(folder, {name: files[name] for name in mine})


def _reason(error: BaseException) -> str:
    """The operating system's reason, if there is one, or else the first words."""
    text = " ".join(str(error).split()) or type(error).__name__
    known = (os.strerror(number) for number in OS_REASONS)
    return next((reason for reason in known if reason in text), text[:FIRST_WORDS])
