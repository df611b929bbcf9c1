"""The stages of a run from end to end: what each reads and runs, and what is counted over them.

How a stage reads on where the ones before it stopped is said in `reading`.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxformer.batch import Batch
from jaxformer.checkpoint.manager import Json
from jaxformer.config import Config, Stage
from jaxformer.data.loader import iterate, train_batches
from jaxformer.data.stores import Stores
from jaxformer.errors import UserError
from jaxformer.memory import program_bytes
from jaxformer.parallel.mesh import check_rows
from jaxformer.parallel.rules import rows_held
from jaxformer.train.program import Program
from jaxformer.train.reading import NOTHING_READ, Reading, weights_of
from jaxformer.train.step import Metrics, TrainState

if TYPE_CHECKING:
    import grain


@dataclass(frozen=True)
class RunStage:
    """A stage with what it runs and what it reads."""

    number: int
    stage: Stage
    program: Program
    stores: Stores
    past: bool  # then its text is not needed any more

    @property
    def steps(self) -> int:
        return self.stage.until - self.stage.start


def check_batches(config: Config, sizes: Mapping[str, int]) -> None:
    """Check that a mesh of these sizes divides the batches of every stage.

    Raises:
        UserError: it does not.
    """
    keys = {"train.batch_size": config.train.batch_size}
    if config.data.stages is not None:
        keys = {
            f"data.stages.{n}.batch_size": each.batch_size for n, each in enumerate(config.stages)
        }
    for key, rows in keys.items():
        check_rows(sizes, rows, config.train.accumulation, key)


def run_stages(program: Program, stores: Stores, step: int = 0) -> tuple[RunStage, ...]:
    """The stages of the run of `program`, of which `step` updates are done; those with batches of
    one shape share what is compiled.

    Raises:
        UserError: the mesh cannot divide a stage's rows.
    """
    stages = program.config.stages
    return tuple(
        RunStage(
            number,
            stage,
            _program_of(number, stage, program),
            stores.for_stage(stage.data),
            past=stage.until <= step and stage is not stages[-1],
        )
        for number, stage in enumerate(stages)
    )


def _program_of(number: int, stage: Stage, program: Program) -> Program:
    try:
        return program.for_stage(stage)
    except UserError as error:
        raise UserError(f"data.stages.{number}: {error}") from error


def data_manifest(stages: Sequence[RunStage], stores: Stores) -> list[Json]:
    """What identifies the text of the run: of the stages that are not past, and of validation."""
    if len(stages) == 1:
        return [*stages[0].stores.training_manifest(), *stores.validation_manifest()]
    training = [
        {**rows, "stage": each.number}
        for each in stages
        if not each.past
        for rows in each.stores.training_manifest()
    ]
    return [*training, *stores.validation_manifest()]


class Course:
    """The way of a run through its stages from `step` on.

    Args:
        saved: what `progress` gave at `step`; if None, or of an earlier version, the steps before
            are taken to have been those of `stages`.
    """

    def __init__(
        self, stages: Sequence[RunStage], step: int = 0, saved: Json | None = None
    ) -> None:
        reading, at = NOTHING_READ, 0
        if saved is not None and "stage" in saved:
            reading, at = Reading.from_json(saved["stage"]), step
            stages = [each for each in stages if each.stage.until > step] or stages[-1:]
        self._parts: list[tuple[RunStage, Reading]] = []
        for each in stages:
            length = each.stage.data.sequence_length
            weights = weights_of(each.stores, length)
            reading = reading.then(at, weights, each.stage.batch_size, length)
            self._parts.append((each, reading))
            at = each.stage.until

    def _at(self, step: int) -> tuple[RunStage, Reading]:
        return next((part for part in self._parts if part[0].stage.until > step), self._parts[-1])

    def tokens(self, step: int) -> int:
        """The tokens of the rows of all steps before `step`."""
        return self._at(step)[1].tokens_by(step)

    def flops(self, step: int) -> float:
        """What the model has computed between the first step here and `step`."""
        return sum(
            each.program.flops_per_step * max(0, min(step, each.stage.until) - each.stage.start)
            for each, _ in self._parts
        )

    def progress(self, step: int) -> Json:
        """The place in the data, for a checkpoint."""
        _, reading = self._at(step)
        return {"next_batch": step - reading.start, "stage": reading.to_json()}

    def batch(self, step: int) -> Batch:
        """The whole batch that `step` takes."""
        each, reading = self._at(step)
        return _batches(each, reading)[step - reading.start]

    def batches(self, step: int, sharding: NamedSharding) -> Generator[Batch]:
        """This process's rows of the batches of `step` and of every later one."""
        for each, reading in self._parts:
            until = each.stage.until
            if step >= until:
                continue
            dataset = _batches(each, reading, rows_held(sharding, reading.batch_size))
            to_come = dataset[: until - reading.start]
            prefetch, threads = each.stage.data.prefetch, each.stores.reading_threads
            iterator = iterate(to_come, step - reading.start, prefetch, threads)
            try:
                yield from iterator
            finally:
                iterator.close()
            step = until

    def compile(self, program: Program, rows_to_evaluate: int | None) -> "CompiledStages":
        """Compile every step ahead of time, so that no later call compiles again."""
        train_steps: dict[tuple[int, ...], jax.stages.Compiled] = {
            (reading.batch_size, reading.sequence_length): each.program.compile_train_step()
            for each, reading in self._parts
        }
        if rows_to_evaluate is None:
            return CompiledStages(train_steps, None)
        return CompiledStages(train_steps, program.compile_eval_step(rows_to_evaluate))


def _batches(
    each: RunStage, reading: Reading, held: np.ndarray | None = None
) -> "grain.MapDataset[Batch]":
    return train_batches(
        each.stores,
        batch_size=reading.batch_size,
        seed=each.program.config.train.seed,
        held=held,
        places=reading.places(),
    )


@dataclass(frozen=True)
class CompiledStages:
    """Executables, those of the train step by the shape of their batch. Called with what they were
    not compiled for, they raise an error; they do not compile anew."""

    train_steps: Mapping[tuple[int, ...], jax.stages.Compiled]
    eval_step: jax.stages.Compiled | None

    def train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return self.train_steps[batch.positions.shape](state, batch)

    @property
    def bytes_per_device(self) -> int:
        """State, batch and temporaries of the largest train step."""
        return max(map(program_bytes, self.train_steps.values()))
