"""The weights of a run: of its checkpoint alone, or of its adapters and the run they adapt."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from jaxformer.checkpoint.lora import fingerprint, merged
from jaxformer.checkpoint.manager import Checkpoints, Json
from jaxformer.checkpoint.manifest import Description
from jaxformer.checkpoint.run_directory import RunDirectory, locate
from jaxformer.config import Config
from jaxformer.config.loading import load_config
from jaxformer.errors import UserError
from jaxformer.model.parameter_paths import from_paths, join
from jaxformer.parallel.rules import replicated

PyTree = Any


class Restored(NamedTuple):
    """Weights, and the part of them that the checkpoint itself holds: adapters, or all."""

    params: PyTree
    stored: PyTree


@dataclass(frozen=True)
class Weights:
    """What to evaluate, sample from, or start from: the moving average where the run keeps one, and
    adapters merged into what they adapt."""

    directory: RunDirectory
    checkpoints: Checkpoints  # open; `restore` closes them
    step: int
    config: Config
    manifest: Json

    @property
    def where(self) -> Path:
        return self.directory.checkpoints / str(self.step)

    @property
    def item(self) -> str:
        return "ema" if "ema" in self.manifest["trees"] else "params"

    def description(self) -> Description:
        """Paths, shapes and dtypes.

        Raises:
            UserError: adapters whose base is gone.
        """
        if self.config.lora is None:
            return self.manifest["trees"][self.item]
        return self.base.description()

    def restore(self, wanted: PyTree) -> Restored:
        """The weights, placed as `wanted` says: ShapeDtypeStructs with shardings.

        Raises:
            UserError: other paths, shapes or dtypes; adapters whose base is gone or has changed.
        """
        lora = self.config.lora
        if lora is None:
            params = self._restore(wanted)
            return Restored(params, params)
        everywhere = replicated(jax.tree.leaves(wanted)[0].sharding.mesh)
        described = self.manifest["trees"][self.item]
        adapters = self._restore(from_paths(abstract_leaves(described, everywhere)))
        fold = jax.jit(
            lambda base, adapters: merged(join(base, adapters), lora),
            out_shardings=jax.tree.map(lambda leaf: leaf.sharding, wanted),
            donate_argnums=0,
        )
        return Restored(fold(self.restore_base(wanted), adapters), adapters)

    def restore_base(self, wanted: PyTree) -> PyTree:
        """The weights under this run's adapters, without these.

        Raises:
            UserError: they are gone, or have changed.
        """
        base, told = self.base, self.manifest["init"]
        params, stored = base.restore(wanted)
        if (now := fingerprint(stored)) != told["fingerprint"]:
            raise UserError(
                f"the parameters of {base.where} have changed since the adapters in {self.where} "
                f"were trained on them (fingerprint {told['fingerprint'][:12]} then, "
                f"{now[:12]} now); restore the old ones, or give "
                f"init.from=WHERE_THEY_ARE"
            )
        return params

    @cached_property
    def base(self) -> "Weights":
        """The weights under this run's adapters: its own copy, unless it has none or init.from
        names others.

        Raises:
            UserError: they are gone.
        """
        source, step = self.config.init.source, self.manifest["init"]["step"]
        assert source is not None  # adapters always have one
        try:
            directory, _ = locate(source)
            if not directory.has_checkpoint(step):
                raise UserError(f"{directory.path} has no checkpoint of step {step}")
            return find_weights(directory.checkpoints / str(step))
        except UserError as error:
            raise UserError(
                f"{self.where} holds adapters, and what they adapt, step {step} of {source}, is "
                f"gone: {error}. Restore it, or give init.from=WHERE_IT_IS"
            ) from error

    def _restore(self, wanted: PyTree) -> PyTree:
        with self.checkpoints as checkpoints:
            return checkpoints.restore(self.step, {self.item: wanted})[self.item]


def abstract_leaves(described: Description, sharding: Sharding) -> dict[str, jax.ShapeDtypeStruct]:
    """Leaves as they were saved, by path, all with the same `sharding`."""
    return {
        path: jax.ShapeDtypeStruct(leaf["shape"], jnp.dtype(leaf["dtype"]), sharding=sharding)
        for path, leaf in described.items()
    }


def find_weights(path: str | Path, overrides: Sequence[str] = ()) -> Weights:
    """The weights of a run's newest good checkpoint, or of the checkpoint that `path` names.

    Args:
        overrides: `key.path=value` each, on top of the run's configuration.

    Raises:
        UserError: no such run or checkpoint, or no good checkpoint yet.
    """
    directory, step = locate(path)
    config = load_config(directory.config, overrides)
    checkpoints = Checkpoints(directory.checkpoints, read_only=True)
    step = checkpoints.newest_good() if step is None else step
    if step is None:
        raise directory.without_checkpoint()
    return Weights(directory, checkpoints, step, config, checkpoints.manifest(step))
