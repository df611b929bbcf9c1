"""Checkpoints of a run, written by Orbax in the background."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation

from jaxformer.checkpoint.manifest import FORMAT, check_same_tree, describe
from jaxformer.paths import is_remote
from jaxformer.schema import UserError

PyTree = Any
Json = dict[str, Any]


class Checkpoints:
    """The folder `checkpoints/` of a run: one folder a step, complete or not there at all.

    A step holds trees of arrays (`params`, `opt_state`, and `ema` where one is kept), and two JSON
    items: `state` (step, place in the data, skipped updates in a row) and `manifest` (format,
    configuration, the trees' paths with shapes and dtypes, fingerprints, versions, mesh, metrics).
    The newest `keep_newest` steps stay and, apart from them, the `keep_best` of lowest eval/loss.
    """

    def __init__(
        self, directory: Path, keep_newest: int = 1, keep_best: int = 0, *, read_only: bool = False
    ) -> None:
        """Open the folder; what an interrupted save has left there is cleared away, unless
        `read_only`: then another process may be saving."""
        self.directory = directory if is_remote(directory) else directory.resolve()
        logging.getLogger("absl").setLevel(logging.ERROR)  # what fails is raised
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            read_only=read_only,
            best_fn=_negative_loss,
            preservation_policy=preservation.AnyPreservationPolicy(
                [
                    preservation.LatestN(keep_newest),
                    preservation.BestN(
                        get_metric_fn=_negative_loss,
                        n=keep_best,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps that can be restored, rising."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def save(
        self,
        step: int,
        trees: Mapping[str, PyTree],
        state: Json,
        manifest: Json,
        eval_loss: float | None,
    ) -> None:
        """Copy the arrays to the host, then write them in the background.

        Waits for an earlier save first, and raises what that one failed with.
        """
        manifest = {
            "format": FORMAT,
            **manifest,
            "trees": {name: describe(tree) for name, tree in trees.items()},
        }
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        ranked = eval_loss is not None and math.isfinite(eval_loss)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **items, state=ocp.args.JsonSave(state), manifest=ocp.args.JsonSave(manifest)
            ),
            metrics={"eval/loss": eval_loss} if ranked else None,
            force=True,
        )

    def raise_failed_save(self) -> None:
        """Raise what a save in the background failed with; returns at once while one goes on."""
        if not self._manager.is_saving_in_progress():
            self._manager.wait_until_finished()

    def wait(self) -> None:
        """Until what was saved is on the disk."""
        self._manager.wait_until_finished()

    def manifest(self, step: int) -> Json:
        """Raises UserError for a format that this version does not know."""
        manifest = self._read(step, "manifest")
        if manifest["format"] > FORMAT:
            raise UserError(
                f"{self.directory / str(step)} has checkpoint format {manifest['format']}; this "
                f"version reads formats up to {FORMAT}: install a newer jaxformer"
            )
        return manifest

    def state(self, step: int) -> Json:
        """Step, place in the data, skipped updates in a row."""
        return self._read(step, "state")

    def restore(self, step: int, wanted: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """The named trees, placed as `wanted` says: trees of ShapeDtypeStruct with shardings.

        Raises:
            UserError: a tree that was not saved, or not with these paths, shapes and dtypes.
        """
        where, saved = self.directory / str(step), self.manifest(step)["trees"]
        for name, tree in wanted.items():
            if name not in saved:
                raise UserError(f"{where} has no '{name}'; it has {', '.join(saved)}")
            check_same_tree(name, where, saved[name], tree)
        arguments = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**arguments))
        return {name: restored[name] for name in wanted}

    def _read(self, step: int, item: str) -> Json:
        restored = self._manager.restore(
            step, args=ocp.args.Composite(**{item: ocp.args.JsonRestore()})
        )
        return restored[item]


def placed(abstract: PyTree, shardings: PyTree) -> PyTree:
    """ShapeDtypeStructs that say where each array is to lie."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )


def _negative_loss(metrics: Mapping[str, float]) -> float:
    return -metrics["eval/loss"]
