"""A training run from a configuration to a trained model, to be read from top to bottom."""

from contextlib import ExitStack

from jaxformer.checkpoint.local_copies import LocalCopies
from jaxformer.checkpoint.lock import RunLock
from jaxformer.checkpoint.manager import Checkpoints
from jaxformer.checkpoint.run_directory import RunDirectory, flat
from jaxformer.config import Config
from jaxformer.data.loader import validation_batches
from jaxformer.data.stores import Stores
from jaxformer.data.vocabulary import tokenizer_of
from jaxformer.evaluate.suites import suites_of
from jaxformer.parallel import processes
from jaxformer.parallel.mesh import check_rows, make_mesh
from jaxformer.parallel.rules import batch_sharding, rows_held
from jaxformer.train import announce
from jaxformer.train.display import make_display
from jaxformer.train.ending import DONE, end_failed, end_finished, end_stopped
from jaxformer.train.goodput import Goodput
from jaxformer.train.interrupt import Interrupted, StopSignal
from jaxformer.train.loop import End, Session, run_steps
from jaxformer.train.metrics import MetricsLog
from jaxformer.train.mfu import peak_flops
from jaxformer.train.preflight import (
    check_room,
    check_stages,
    check_state,
    check_step,
    check_vocabulary,
    is_complete,
    manifest_of,
    schedule_notes,
)
from jaxformer.train.program import make_program, weights
from jaxformer.train.recorder import Recorder
from jaxformer.train.reference import find_reference
from jaxformer.train.sharding_report import sharding_report
from jaxformer.train.stages import Course, check_batches, data_manifest, run_stages
from jaxformer.train.start import find_start, first_state
from jaxformer.train.step import TrainState
from jaxformer.train.trackers import check_trackers, start_trackers


def train(config: Config) -> int:
    """Train the run of `config.run.dir`, or resume it.

    Returns:
        The exit code: 0 done (or done before), 1 after too many updates in a row that were not
        finite, 75 stopped by SIGTERM or Ctrl-C with everything saved.

    Raises:
        UserError: the configuration does not fit the run directory, the data or the devices.
    """
    goodput = Goodput()
    with goodput.spent_on("start"):
        # The run's directory comes first: a mistake there is found before any device is touched.
        directory = RunDirectory(config.run.dir)
        directory.check(config)
        check_stages(config)
        if is_complete(directory, config):
            print(f"{directory.path} is complete: all {config.train.steps:,} steps are done")
            print(announce.commands(directory, config, finished=True))
            return DONE
        if processes.is_first():
            check_trackers(config.run, directory.path)
        notes = schedule_notes(directory, config)
        config = directory.with_own_copies(config)
        suites = suites_of(config)

        # Then the mesh and what will be compiled, which only compute shapes; then the data.
        tokenizer = tokenizer_of(config.data)
        check_vocabulary(config, tokenizer)
        mesh = make_mesh(config.mesh.sizes, config.mesh.preset)
        check_batches(config, mesh.shape)
        check_rows(mesh.shape, config.eval_rows, 1, "eval.batch_size")
        teacher = find_reference(config, tokenizer)
        program = make_program(config, mesh, tokenizer.vocab_size)
        check_state(program)
        other = None if directory.has_checkpoints else find_start(program)
        stores = Stores(config.data, tokenizer)
        stages = run_stages(program, stores, directory.newest_step() or 0)
        with processes.first_goes_first("token stores"):
            data = data_manifest(stages, stores)
            validation = validation_batches(
                stores,
                batch_size=config.eval_rows,
                held=rows_held(batch_sharding(mesh), config.eval_rows),
            )
        peak = peak_flops(list(mesh.devices.flat), config.train.precision)
        manifest = manifest_of(directory.recorded(config), program, tokenizer, data)
        processes.check_same("configuration, code or data", flat(manifest))
        check_room(directory, program)

    with ExitStack() as stack:
        with goodput.spent_on("start"):
            lock = stack.enter_context(RunLock(directory))
            checkpoints = stack.enter_context(_opened(directory, config))
        display = stack.enter_context(make_display(config.train.steps))
        stop = stack.enter_context(StopSignal())
        display.say("\n".join([announce.plan_of(program, stages, peak), *notes]))
        if mesh.size > 1:
            held, table = weights(program.abstract), config.mesh.table
            display.say(sharding_report(held, program.model.vocab_size, table))
        with goodput.spent_on("start"):
            local = config.checkpoint.local
            copies = LocalCopies(local, directory) if local else None
            state, done, manifest = first_state(
                directory,
                checkpoints,
                program,
                manifest,
                other,
                teacher,
                tokenizer,
                copies,
                display.say,
            )
            step = done["step"]
            course = Course(stages, step, done.get("data"))
            log = MetricsLog(directory.metrics, step, writes=processes.is_first())
        trackers = (
            start_trackers(config.run, directory, manifest, step, display.say)
            if processes.is_first()
            else []
        )
        with Recorder(log, trackers, display, goodput, program, course, peak.flops) as recorder:
            session = Session(
                program=program,
                course=course,
                directory=directory,
                stores=stores,
                validation=validation,
                suites=suites,
                checkpoints=checkpoints,
                copies=copies,
                lock=lock,
                recorder=recorder,
                stop=stop,
                manifest=manifest,
            )
            code = _compile_and_run(session, state, step)
    print(goodput.table())
    return code


def _opened(directory: RunDirectory, config: Config) -> Checkpoints:
    """Create the run's directory with its configuration, and open its checkpoints for writing."""
    processes.first_alone("run directory", lambda: directory.create(config))
    directory.check_shared()
    keep = config.checkpoint
    return Checkpoints(directory.checkpoints, keep.keep_newest, keep.keep_best, keep.keep_every)


def _compile_and_run(session: Session, state: TrainState, step: int) -> int:
    program, stop, recorder = session.program, session.stop, session.recorder
    rows = program.config.eval_rows if len(session.validation) else None
    try:
        with recorder.goodput.spent_on("compile"):
            compiled = stop.wait_for(lambda: session.course.compile(program, rows))
            # Transports wait only seconds for a process that still compiles.
            processes.barrier("compiled")
    except Interrupted:
        return end_stopped(session, state, step)
    check_step(program, compiled)
    seconds = recorder.goodput.seconds()["compile"]
    session.say(announce.compiled_in(seconds, compiled.bytes_per_device))
    match run_steps(session, compiled, state, step):
        case End.FINISHED, state, step:
            return end_finished(session, state, step)
        case End.STOPPED, state, step:
            return end_stopped(session, state, step)
        case _:
            return end_failed(session)
