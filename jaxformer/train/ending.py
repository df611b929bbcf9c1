"""The three ways in which a run ends, each with its exit code."""

import jax
import numpy as np

from jaxformer.evaluate.samples import Sample, samples_of
from jaxformer.generate.beam_search import BeamSearch
from jaxformer.parallel import processes
from jaxformer.parallel.rules import path_name
from jaxformer.paths import append_text
from jaxformer.train import announce
from jaxformer.train.interrupt import STOPPED
from jaxformer.train.loop import Session, save
from jaxformer.train.step import TrainState

DONE, FAILED = 0, 1
SAMPLE_TEMPERATURE = 0.8


def end_finished(session: Session, state: TrainState, step: int) -> int:
    """Save, write a sample, and print the commands that use the run."""
    save(session, state, step, wait=True)
    if session.copies:
        session.copies.remove()
    if session.config.eval.sample_tokens:
        with session.recorder.goodput.spent_on("evaluation"):
            text, pictures = _sample(session, state, step)
        if text and processes.is_first():
            append_text(session.directory.samples, f"--- step {step}\n{text}\n")
        if text:
            session.recorder.sampled(step, text, pictures)
            session.say(f"a sample:\n\n{text}\n")
    session.say(announce.commands(session.directory, session.config, finished=True))
    return DONE


def _sample(session: Session, state: TrainState, step: int) -> tuple[str, list[Sample]]:
    """What the model continues or translates, or says of validation rows, and these; empty if it
    does nothing of it."""
    config, objective = session.config, session.config.train.objective
    if config.data.kind == "pairs":
        return _translation(session, state, step), []
    if config.instead is None:
        return _continuation(session, state, step), []
    if config.data.kind == "text" or objective.of_numbers or objective.compares_rows:
        return "", []
    samples = samples_of(session.model_after(step, state), session.stores.validation)
    lines = (f"{number}  {each.caption}" for number, each in enumerate(samples, start=1))
    return "\n".join(lines), samples


def _continuation(session: Session, state: TrainState, step: int) -> str:
    config = session.config
    text = session.model_after(step, state).generate(
        "",
        max_new_tokens=int(min(config.eval.sample_tokens, config.model.longest_row - 1)),
        temperature=SAMPLE_TEMPERATURE,
        seed=config.train.seed,
    )
    assert isinstance(text, str)
    return text


def _translation(session: Session, state: TrainState, step: int) -> str:
    """Of the first source that is validated on, or trained on."""
    run = session.model_after(step, state)
    rows = (session.stores.validation or session.stores.training)[0]
    source = rows.pack(np.zeros(1, np.int64)).inputs.source
    text = run.tokenizer.decode(source.inputs[source.segment_ids == 1])
    most = min(session.config.eval.sample_tokens, session.config.data.sequence_length)
    [written] = run.translate([text], BeamSearch(max_new_tokens=most))
    return f"{text}\n→ {written}"


def end_stopped(session: Session, state: TrainState, step: int) -> int:
    """After a signal: finish the steps that are running, save, and say how to resume."""
    session.say(f"{session.stop.name}: saving step {step:,}; a second signal exits at once")
    session.recorder.drain()
    save(session, state, step, wait=True)
    saved = session.checkpoints.latest()
    if saved != step:
        session.say(f"step {step:,} is not saved: its update was skipped; newest save: {saved}")
    session.say(announce.commands(session.directory, session.config, finished=False))
    return STOPPED


def end_failed(session: Session) -> int:
    """After too many updates that were not finite: keep the last checkpoints and the batch."""
    step = session.recorder.finished
    path = session.directory.path / f"nonfinite_batch_{step}.npz"
    if processes.is_first():
        with path.open("wb") as file:
            leaves, _ = jax.tree.flatten_with_path(session.course.batch(step - 1))
            np.savez(file, **{path_name(place): array for place, array in leaves})
    session.checkpoints.wait()
    good = session.checkpoints.latest()
    last_good = "none" if good is None else f"step {good:,}"
    session.say(
        f"stopped at step {step:,}: the loss or the gradient was not finite for "
        f"{session.recorder.nonfinite} steps in a row (train.max_nonfinite_steps). The batch is in "
        f"{path}, the last good checkpoint is {last_good}. Lower "
        f"optimizer.learning_rate, or lengthen its warm-up"
    )
    return FAILED
