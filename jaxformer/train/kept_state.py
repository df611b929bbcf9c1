"""A start that keeps the optimizer's state of another run, where schedule and data change."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.checkpoint.lora import fingerprint
from jaxformer.checkpoint.manifest import check_same_tree
from jaxformer.checkpoint.weights import Weights
from jaxformer.errors import UserError
from jaxformer.train.program import Program, restored, trees
from jaxformer.train.step import TrainState

PyTree = Any
NAMES = {"params": "parameters", "opt_state": "optimizer state", "ema": "moving averages"}


@dataclass(frozen=True)
class KeptState:
    """The weights that another run has trained, with their moments and their moving average.

    The optimizer counts its own updates for the bias correction of moments, and goes on counting;
    the step, of which the learning rate is a function, begins at 0.
    """

    source: Weights
    wanted: dict[str, PyTree]  # what is taken, as ShapeDtypeStructs with shardings
    notes: tuple[str, ...]
    item = "params"

    @property
    def what(self) -> str:
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.wanted["params"]))
        average = ", the moving average" if "ema" in self.wanted else ""
        return f": {count:,} parameters are taken{average} and the optimizer's state"

    def state(self, program: Program) -> tuple[TrainState, str]:
        """The state before the first step, and the fingerprint of the weights that were saved."""
        with self.source.checkpoints as checkpoints:
            arrays = checkpoints.restore(self.source.step, self.wanted)
        state = restored(program, arrays, {"step": 0, "nonfinite": 0})
        if state.ema is None and program.abstract.ema is not None:
            state = state.replace(ema=jax.tree.map(jnp.copy, state.params))
        return state, fingerprint(arrays["params"])


def find_state(source: Weights, program: Program) -> KeptState:
    """What is kept of `source`, compared with what the run needs; no array is read yet.

    Raises:
        UserError: it has no state of an optimizer, or one of another kind, or one that differs,
            listed path by path.
    """
    saved, wanted = source.manifest["trees"], trees(program.abstract)
    mend = "; to start from its weights alone, leave init.state out"
    if source.config.lora is not None:
        raise UserError(
            f"init.state is optimizer, but {source.where} has adapters, which are merged into the "
            f"weights, and their moments cannot be{mend}"
        )
    if "opt_state" not in saved:
        raise UserError(
            f"init.state is optimizer, but {source.where} has none: it has {', '.join(saved)}, as "
            f"an imported model does{mend}"
        )
    before, now = source.config.optimizer.kind, program.config.optimizer.kind
    if before != now:
        raise UserError(
            f"init.state is optimizer, but optimizer.kind is {now}, and {source.where} was trained "
            f"with {before}; give optimizer.kind={before}{mend}"
        )
    notes = []
    if "ema" in saved and "ema" not in wanted:
        notes.append("not taken: its moving average, as train.ema_decay is null")
    if "ema" in wanted and "ema" not in saved:
        notes.append("fresh: the moving average, which starts at the weights")
        del wanted["ema"]
    for name, tree in wanted.items():
        check_same_tree(
            NAMES[name],
            source.where,
            saved[name],
            tree,
            mend=f"fix the configuration{mend}",
        )
    return KeptState(source, wanted, tuple(notes))
