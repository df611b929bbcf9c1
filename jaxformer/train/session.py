"""What the phases of a run share, and saving, which all of them may have to do."""

from dataclasses import dataclass

from jaxformer.checkpoint.lock import RunLock
from jaxformer.checkpoint.manager import Checkpoints, Json
from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.config import Config
from jaxformer.data.loader import ValidationBatches
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.evaluate.suites import Suite
from jaxformer.train.display import Display
from jaxformer.train.goodput import Goodput
from jaxformer.train.interrupt import StopSignal
from jaxformer.train.metrics import MetricsLog
from jaxformer.train.program import Program, progress, trees
from jaxformer.train.recorder import Recorder
from jaxformer.train.step import TrainState


@dataclass(frozen=True)
class Session:
    """What the phases of one process's part of a run share."""

    config: Config
    directory: RunDirectory
    tokenizer: Tokenizer
    validation: ValidationBatches
    suites: tuple[Suite, ...]
    program: Program
    checkpoints: Checkpoints
    lock: RunLock
    log: MetricsLog
    recorder: Recorder
    display: Display
    goodput: Goodput
    stop: StopSignal
    manifest: Json


def save(session: Session, state: TrainState, step: int, *, wait: bool = False) -> None:
    """Checkpoint `step`, if it is not there yet.

    While updates are being skipped nothing is saved, so that the newest checkpoints stay those of
    before; the last step of the run is saved all the same.
    """
    last = step == session.config.train.steps
    with session.goodput.spent_on("saving"):
        if step != session.checkpoints.latest() and (last or not session.recorder.nonfinite):
            session.log.sync()
            loss = session.log.eval_loss(step)
            session.checkpoints.save(step, trees(state), progress(state), session.manifest, loss)
        if wait:
            session.checkpoints.wait()
