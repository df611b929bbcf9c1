"""A training run from a configuration to a trained model, to be read from top to bottom."""

from functools import partial

from jaxformer.checkpoint.lock import RunLock
from jaxformer.checkpoint.manager import Checkpoints
from jaxformer.checkpoint.own_copies import keep_copies
from jaxformer.checkpoint.run_directory import RunDirectory, flat
from jaxformer.checkpoint.weights import Weights
from jaxformer.config import Config
from jaxformer.data.loader import iterate, open_stores, train_batches, validation_batches
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.evaluate.perplexity import evaluate
from jaxformer.parallel import processes
from jaxformer.parallel.mesh import check_rows, make_mesh
from jaxformer.parallel.report import sharding_report
from jaxformer.parallel.rules import batch_sharding, put_batch, rows_held
from jaxformer.train import announce, statistics
from jaxformer.train.display import make_display
from jaxformer.train.ending import DONE, end_failed, end_finished, end_stopped
from jaxformer.train.goodput import Goodput
from jaxformer.train.interrupt import Interrupted, StopSignal
from jaxformer.train.metrics import MetricsLog
from jaxformer.train.mfu import peak_flops
from jaxformer.train.preflight import (
    check_room,
    check_same_data,
    check_state,
    check_step,
    check_vocabulary,
    is_complete,
    manifest_of,
    schedule_notes,
)
from jaxformer.train.program import (
    Compiled,
    averaged,
    make_program,
    restored,
    trees,
    weights,
)
from jaxformer.train.recorder import Recorder
from jaxformer.train.reference import find_reference, load_reference
from jaxformer.train.session import Session, save
from jaxformer.train.start import begin, find_start, tell
from jaxformer.train.step import TrainState
from jaxformer.train.suites import measure, suites_of
from jaxformer.train.trackers import Guarded, TensorBoard


def train(config: Config) -> int:
    """Train, or go on with, the run of `config.run.dir`.

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
        if is_complete(directory, config):
            print(f"{directory.path} is complete: all {config.train.steps:,} steps are done")
            print(announce.commands(directory, config, finished=True))
            return DONE
        notes = schedule_notes(directory, config)
        config = directory.with_own_copies(config)
        suites = suites_of(config)

        # Then the mesh and what will be compiled, which only compute shapes; then the data.
        tokenizer = load_tokenizer(config.data.tokenizer, config.data.add_bos)
        check_vocabulary(config, tokenizer)
        mesh = make_mesh(config.mesh.sizes, config.mesh.preset)
        check_rows(
            mesh.shape, config.train.batch_size, config.train.accumulation, "train.batch_size"
        )
        check_rows(mesh.shape, _eval_rows(config), 1, "eval.batch_size")
        teacher = find_reference(config, tokenizer)
        program = make_program(config, mesh, tokenizer.vocab_size)
        check_state(program)
        other = None if directory.has_checkpoints else find_start(program)
        with processes.first_goes_first("token stores"):
            stores = open_stores(config.data, tokenizer)
            validation = validation_batches(
                config.data,
                tokenizer,
                batch_size=_eval_rows(config),
                held=rows_held(batch_sharding(mesh), _eval_rows(config)),
            )
        peak = peak_flops(list(mesh.devices.flat), config.train.precision)
        manifest = manifest_of(directory.recorded(config), program, tokenizer, stores)
        processes.check_same("configuration, code or data", flat(manifest))
        check_room(directory, program)

    with (
        RunLock(directory) as lock,
        _opened(directory, config) as checkpoints,
        make_display(config.train.steps) as display,
        StopSignal() as stop,
    ):
        display.say("\n".join([announce.plan_of(program, stores, peak), *notes]))
        if mesh.size > 1:
            held, table = weights(program.abstract), config.mesh.table
            display.say(sharding_report(held, program.model.vocab_size, table))
        # A run starts from its own newest good checkpoint; or else from other weights (init.from),
        # as far as they are taken (init.partial); or else from scratch.
        with goodput.spent_on("start"):
            resumed = checkpoints.newest_good()
            if resumed is not None:
                saved = checkpoints.manifest(resumed)
                check_same_data(config, saved, manifest)
                manifest["init"] = saved.get("init")
                own = Weights(directory, checkpoints, resumed, config, saved)
                under = own.base if config.lora else None
                base = own.restore_base(program.abstract.base) if under else None
                arrays = checkpoints.restore(resumed, trees(program.abstract))
                state = restored(program, arrays, checkpoints.state(resumed), base)
                display.say(f"resumed from {own.where}")
            elif other is not None:
                state, manifest["init"] = begin(other, program)
                under = other.source if config.lora else None
                display.say(tell(other, tokenizer))
            else:
                state, manifest["init"], under = program.initial_state(), None, None
            told = None if resumed is None else saved.get("reference")
            reference, manifest["reference"] = load_reference(
                teacher, program.abstract.reference, told
            )
            state = state.replace(reference=reference)
            processes.first_alone(
                "copies", lambda: keep_copies(directory, tokenizer, under, teacher)
            )
            processes.first_alone("manifest", lambda: directory.write_manifest(manifest))
            log = MetricsLog(directory.metrics, resumed or 0, writes=processes.is_first())
        board = partial(TensorBoard, directory.tensorboard, resumed or 0)
        trackers = [Guarded("TensorBoard", board)] if processes.is_first() else []
        recorder = Recorder(
            log,
            trackers,
            display,
            goodput,
            log_every=config.train.log_every,
            layers_every=layers.every if (layers := config.train.layer_statistics) else None,
            layer_counts=statistics.counts(program.abstract.params, config.model),
            last_step=config.train.steps,
            tokens_per_step=program.tokens_per_step,
            flops_per_step=program.flops_per_step,
            peak_flops=peak.flops,
        )
        session = Session(
            config=config,
            directory=directory,
            tokenizer=tokenizer,
            validation=validation,
            suites=suites,
            program=program,
            checkpoints=checkpoints,
            lock=lock,
            log=log,
            recorder=recorder,
            display=display,
            goodput=goodput,
            stop=stop,
            manifest=manifest,
        )
        code = _compile_and_run(session, state, resumed or 0)
        for tracker in trackers:
            tracker.close()
        log.close()
    print(goodput.table())
    return code


def _opened(directory: RunDirectory, config: Config) -> Checkpoints:
    """The run's directory with its configuration, from here on this run's alone to write to."""
    processes.first_alone("run directory", lambda: directory.create(config))
    directory.check_shared()
    keep = config.checkpoint
    return Checkpoints(directory.checkpoints, keep.keep_newest, keep.keep_best)


def _compile_and_run(session: Session, state: TrainState, step: int) -> int:
    program, stop = session.program, session.stop
    rows = _eval_rows(session.config) if len(session.validation) else None
    try:
        with session.goodput.spent_on("compile"):
            compiled = stop.wait_for(lambda: program.compile(rows))
            # Transports wait only seconds for a process that still compiles.
            processes.barrier("compiled")
    except Interrupted:
        return end_stopped(session, state, step)
    check_step(program, compiled)
    seconds = session.goodput.seconds()["compile"]
    session.display.say(announce.compiled_in(seconds, compiled.bytes_per_device))
    return _run(session, compiled, state, step)


def _run(session: Session, compiled: Compiled, state: TrainState, step: int) -> int:
    """The loop. At every step, in this order: evaluate, save, and only then draw the next batch."""
    config, recorder, goodput = session.config, session.recorder, session.goodput
    steps, sharding = config.train.steps, batch_sharding(session.program.mesh)
    with goodput.spent_on("start"):
        dataset = train_batches(
            config.data,
            session.tokenizer,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            held=rows_held(sharding, config.train.batch_size),
        )
        batches = iterate(dataset, step, config.data.prefetch)
    recorder.start(step, int(state.nonfinite))
    try:
        while True:
            session.lock.check()
            session.checkpoints.raise_failed_save()
            evaluates = _is_due(step, config.eval.every, steps)
            saves = _is_due(step, config.checkpoint.every, steps)
            measures = _is_due(step, config.eval.suites_every or steps, steps)
            if evaluates or saves or measures:
                recorder.drain()
            if recorder.nonfinite >= config.train.max_nonfinite_steps:
                return end_failed(session, recorder.finished)
            if evaluates:
                _evaluate(session, compiled, state, step)
            if measures:
                measure(session, state, step)
            if saves:
                save(session, state, step)
            if session.stop.due(step):
                return end_stopped(session, state, step)
            if step == steps:
                return end_finished(session, state, step)
            with goodput.spent_on("data"):
                batch = put_batch(next(batches), sharding)
            state, metrics = compiled.train_step(state, batch)
            step += 1
            recorder.add(step, metrics)
    finally:
        batches.close()


def _evaluate(session: Session, compiled: Compiled, state: TrainState, step: int) -> None:
    """Write the evaluation row of `step`, if there is text for it and no row yet.

    A signal ends it without a row; a resumed run begins with the evaluation that is missing.
    """
    config, batches = session.config.eval, session.validation
    if compiled.eval_step is None or session.log.has_evaluation(step):
        return
    count = min(len(batches), config.batches or len(batches))
    with session.goodput.spent_on("evaluation"):
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
    session.recorder.evaluated(step, evaluation)


def _is_due(step: int, every: int, last: int) -> bool:
    return step == last or (step > 0 and step % every == 0)


def _eval_rows(config: Config) -> int:
    return config.eval.batch_size or config.train.batch_size
