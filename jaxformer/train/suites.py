"""Suites of evaluation within a run: `eval.suites`."""

from jaxformer.config import Config
from jaxformer.evaluate.suites import Options, Result, Suite, find_suite
from jaxformer.paths import local_path
from jaxformer.run import Run
from jaxformer.train.interrupt import Interrupted
from jaxformer.train.program import averaged
from jaxformer.train.session import Session
from jaxformer.train.step import TrainState


def suites_of(config: Config) -> tuple[Suite, ...]:
    """The suites of a configuration, with their data.

    Raises:
        UserError: one of them is none, or its data is not to be had.
    """
    folder = config.eval.tasks_dir
    options = Options(None if folder is None else local_path(folder), config.eval.suites_limit)
    return tuple(find_suite(name, options) for name in dict.fromkeys(config.eval.suites))


def measure(session: Session, state: TrainState, step: int) -> None:
    """Write the suites' row of `step`, if there is none yet.

    A signal ends it without a row; a resumed run begins with the row that is missing.
    """
    if not session.suites or session.log.has_suites(step):
        return
    program = session.program
    run = Run(session.config, program.model, averaged(state), session.tokenizer, step, program.mesh)
    results: dict[str, Result] = {}
    with session.goodput.spent_on("evaluation"):
        try:
            for suite in session.suites:
                results |= suite(run, session.stop.check)
        except Interrupted:
            return
    session.recorder.measured(step, results)
