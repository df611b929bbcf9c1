"""The loop over the steps of a run, and what it stops for: evaluation, suites, saving."""

from dataclasses import dataclass
from enum import Enum, auto

from jaxformer.checkpoint.local_copies import LocalCopies
from jaxformer.checkpoint.lock import RunLock
from jaxformer.checkpoint.manager import Checkpoints, Json
from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.config import Config
from jaxformer.data.loader import BatchesInHand, ValidationBatches
from jaxformer.data.stores import Stores
from jaxformer.evaluate.perplexity import evaluate
from jaxformer.evaluate.suite import Result, Suite
from jaxformer.parallel.rules import batch_sharding, put_batch
from jaxformer.run import Run
from jaxformer.storage import Unreachable
from jaxformer.train.interrupt import Interrupted, StopSignal
from jaxformer.train.profiling import Profiler
from jaxformer.train.program import Program, averaged, progress, trees
from jaxformer.train.recorder import Recorder
from jaxformer.train.stages import CompiledStages, Course
from jaxformer.train.step import TrainState
from jaxformer.train.timetable import Timetable


@dataclass(frozen=True)
class Session:
    """What the phases of a run share, in one process."""

    program: Program
    course: Course
    directory: RunDirectory
    stores: Stores
    validation: ValidationBatches
    suites: tuple[Suite, ...]
    checkpoints: Checkpoints
    copies: LocalCopies | None
    lock: RunLock
    recorder: Recorder
    stop: StopSignal
    manifest: Json

    def say(self, text: str) -> None:
        self.recorder.display.say(text)

    @property
    def config(self) -> Config:
        return self.program.config

    def lose_data(self, reason: Unreachable) -> None:
        """Stop as for a signal, because the data can no longer be reached."""
        if self.stop.name is None:
            self.say(str(reason))
            self.stop.ask("data lost")

    def model_after(self, step: int, state: TrainState) -> Run:
        """The model as it is now, to measure and to sample from; adapters beside their base."""
        program = self.program
        return Run(
            self.config, program.model, averaged(state), self.stores.tokenizer, step, program.mesh
        )


class End(Enum):
    """Why a run leaves its loop."""

    FINISHED = auto()
    STOPPED = auto()  # by a signal
    FAILED = auto()  # too many updates that were not finite


def run_steps(
    session: Session, compiled: CompiledStages, state: TrainState, step: int
) -> tuple[End, TrainState, int]:
    """At every step, in this order: evaluate, save, measure suites; only then draw the next batch.

    Returns:
        Why it ended, the state then, and how many steps were taken.
    """
    config, recorder, goodput = session.config, session.recorder, session.recorder.goodput
    steps, sharding = config.train.steps, batch_sharding(session.program.mesh)
    batches = BatchesInHand(session.course.batches(step, sharding))
    with goodput.spent_on("start"):
        batches.fill()
    profiler = Profiler(config.train.profile, session.directory, compiled, goodput, session.say)
    profiler.start(step)
    timetable = Timetable(config.checkpoint.every_minutes)
    timetable.restart(step)
    recorder.start(step, int(state.nonfinite))
    try:
        while True:
            session.lock.check()
            session.checkpoints.raise_failed_save()
            evaluates = _is_due(step, config.eval.every, steps)
            copies = bool(session.copies) and _is_due(step, config.checkpoint.local_every, steps)
            saves = _is_due(step, config.checkpoint.every, steps) or timetable.due(step)
            saves |= copies and session.checkpoints.latest() is None  # copies only add to these
            measures = _is_due(step, config.eval.suites_every or steps, steps)
            if evaluates or saves or measures or copies:
                recorder.drain()
            if recorder.nonfinite >= config.train.max_nonfinite_steps:
                return End.FAILED, state, step
            if evaluates:
                _evaluate(session, compiled, state, step)
            if saves:
                save(session, state, step)
                timetable.restart(step)
            elif copies:
                _copy(session, state, step)
            if measures:
                _measure(session, state, step)
            if session.stop.due(step):
                return End.STOPPED, state, step
            if step == steps:
                return End.FINISHED, state, step
            with goodput.spent_on("data"):
                batch = put_batch(next(batches), sharding)
            if batches.lost is not None:
                session.lose_data(batches.lost)
            step += 1
            state, metrics = profiler.take(step, state, batch)
            recorder.add(step, metrics)
    finally:
        batches.close()
        profiler.close()


def _evaluate(session: Session, compiled: CompiledStages, state: TrainState, step: int) -> None:
    """Write the evaluation row of `step`, if there is text for it and no row yet.

    A signal ends it without a row; a resumed run begins with the evaluation that is missing.
    """
    config, batches = session.config.eval, session.validation
    if compiled.eval_step is None or session.recorder.log.has_evaluation(step):
        return
    count = min(len(batches), config.batches or len(batches))
    with session.recorder.goodput.spent_on("evaluation"):
        try:
            evaluation = evaluate(
                compiled.eval_step,
                averaged(state),
                (batches[index] for index in range(count)),
                bytes_per_token=batches.bytes_per_token,
                sharding=batch_sharding(session.program.mesh),
                after_batch=lambda done: session.stop.check(),
            )
        except Interrupted:
            return
        except Unreachable as reason:
            if session.stop.is_shared:  # the others wait for this process's part
                raise
            session.lose_data(reason)
            return
    session.recorder.evaluated(step, evaluation)


def _measure(session: Session, state: TrainState, step: int) -> None:
    """Write the suites' row of `step`, if there is none yet.

    A signal ends it without a row; a resumed run begins with the row that is missing.
    """
    recorder = session.recorder
    if not session.suites or recorder.log.has_suites(step):
        return
    run, results = session.model_after(step, state), dict[str, Result]()
    with recorder.goodput.spent_on("evaluation"):
        try:
            for suite in session.suites:
                results |= suite(run, session.stop.check)
        except Interrupted:
            return
    recorder.measured(step, results)


def save(session: Session, state: TrainState, step: int, *, wait: bool = False) -> None:
    """Save a checkpoint of `step`, unless there is one.

    While updates are being skipped, nothing is saved, so that the newest checkpoints stay those
    from before; the last step of the run is saved all the same.
    """
    recorder, checkpoints = session.recorder, session.checkpoints
    last = step == session.config.train.steps
    with recorder.goodput.spent_on("saving"):
        if step != checkpoints.latest() and (last or not recorder.nonfinite):
            recorder.log.sync()
            loss = recorder.log.eval_loss(step)
            done = _progress(session, state, step)
            checkpoints.save(step, trees(state), done, session.manifest, loss)
        if wait:
            checkpoints.wait()


def _copy(session: Session, state: TrainState, step: int) -> None:
    """Copy `step` to this host's disk, unless updates are being skipped."""
    recorder = session.recorder
    if session.copies is None or recorder.nonfinite:
        return
    with recorder.goodput.spent_on("saving"):
        recorder.log.sync()
        done = _progress(session, state, step)
        session.copies.save(step, trees(state), done, session.manifest)


def _progress(session: Session, state: TrainState, step: int) -> Json:
    return progress(state) | {"data": session.course.progress(step)}


def _is_due(step: int, every: int, last: int) -> bool:
    return step == last or (step > 0 and step % every == 0)
