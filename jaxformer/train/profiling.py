"""A profile of a few steps, written beside the run that takes them.

`RUN/profile/STEP/` has, of the steps from STEP on:

    program.txt.gz                              the compiled step, whose operations name their parts
    plugins/profile/steps/process_I.xplane.pb   what process I's host and devices did, and when
    process_I.memory.prof                       what is in its devices' memory, for pprof

xprof and TensorBoard read such a folder, and `jaxformer profile`.
"""

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

from jaxformer.batch import Batch
from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.config import ProfileConfig
from jaxformer.errors import RunFailed
from jaxformer.parallel import processes
from jaxformer.run_files import PROGRAM, TRACES
from jaxformer.storage import Place
from jaxformer.train.goodput import Goodput
from jaxformer.train.stages import CompiledStages
from jaxformer.train.step import Metrics, TrainState

ANNOTATION = "train"  # the name of a step in the trace


class Profiler:
    """Takes the steps of a run, and a profile of those that `config` names.

    Each of these is waited for, before the next is launched, and annotated: the annotation spans
    its work on the devices. All other steps are only launched.
    """

    def __init__(
        self,
        config: ProfileConfig | None,
        directory: RunDirectory,
        compiled: CompiledStages,
        goodput: Goodput,
        say: Callable[[str], None],
    ) -> None:
        self._steps = config.window if config else range(0)
        self._compiled, self._goodput, self._say = compiled, goodput, say
        self._folder = Place(str(directory.profile)) / str(self._steps.start)
        self._traces: tempfile.TemporaryDirectory[str] | None = None  # while a trace is taken

    def start(self, step: int) -> None:
        """`step` updates have been made: a window that began before gives no profile."""
        if self._steps.start > step:
            return
        if self._steps and not (self._folder / PROGRAM).exists():
            self._say(
                f"no profile: train.profile.start is {self._steps.start}, and the run goes on "
                f"after step {step}; give a later start"
            )
        self._steps = range(0)

    def take(self, step: int, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Update number `step`."""
        if step not in self._steps:
            return self._compiled.train_step(state, batch)
        if step == self._steps.start:
            jax.block_until_ready((state, batch))
            self._begin()
        with jax.profiler.StepTraceAnnotation(ANNOTATION, step_num=step):
            result = jax.block_until_ready(self._compiled.train_step(state, batch))
        if step == self._steps[-1]:
            self._end(batch)
        return result

    def close(self) -> None:
        """Drop what a run that ends within the window has traced of it."""
        if self._traces is not None:
            jax.profiler.stop_trace()
            self._traces.cleanup()
            self._traces = None
            self._say("the run ends while it takes its profile: no profile is written")

    def _begin(self) -> None:
        self._traces = tempfile.TemporaryDirectory(prefix="jaxformer-profile-")
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # calls of Python would be most of the trace
        with self._goodput.spent_on("profile"):
            jax.profiler.start_trace(self._traces.name, profiler_options=options)

    def _end(self, batch: Batch) -> None:
        assert self._traces is not None
        with self._goodput.spent_on("profile"), self._traces as folder:
            jax.profiler.stop_trace()
            self._traces = None
            try:
                self._write(Path(folder), batch)
            except (OSError, RunFailed) as error:  # the run is worth more
                self._say(f"no profile: {self._folder} cannot be written: {error}")

    def _write(self, traces: Path, batch: Batch) -> None:
        """Take the trace, and what belongs to it, to the run, which may be in a bucket."""
        name = f"process_{processes.index()}"
        [trace] = traces.rglob("*.xplane.pb")
        (self._folder / TRACES / f"{name}.xplane.pb").take(trace)
        memory = jax.profiler.device_memory_profile()
        (self._folder / f"{name}.memory.prof").write(memory)
        if processes.is_first():
            text = self._compiled.train_steps[batch.positions.shape].as_text()
            assert text is not None
            (self._folder / PROGRAM).write(gzip.compress(text.encode()))
        steps = f"{self._steps.start} to {self._steps[-1]}"
        self._say(f"a profile of steps {steps} is in {self._folder}")
