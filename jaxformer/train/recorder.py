"""Follows the steps one behind the device, and writes down what they measured."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Self

import jax

from jaxformer.evaluate.perplexity import Evaluation
from jaxformer.evaluate.samples import Sample
from jaxformer.evaluate.suite import Result
from jaxformer.memory import allocated
from jaxformer.train import statistics
from jaxformer.train.display import Display
from jaxformer.train.goodput import Goodput
from jaxformer.train.metrics import MetricsLog, Row
from jaxformer.train.program import Program
from jaxformer.train.stages import Course
from jaxformer.train.step import Metrics
from jaxformer.train.trackers.follower import Follower, close_all

MANY = 32  # tokens per step of an equal share, with which chance leaves no expert idle


class Recorder:
    """Rows of `metrics.jsonl` from the metrics of steps that may still be running.

    `add` waits for the step before the one added, so that one step is always queued on the device
    while the host prepares the next, and the host sees each step end when it does. `step_seconds`
    is the mean over the steps since the last row, without evaluation, saving and what
    a profile takes to write. The rows of layers
    are written every `layers_every` steps, and after the last.
    """

    def __init__(
        self,
        log: MetricsLog,
        trackers: Sequence[Follower],
        display: Display,
        goodput: Goodput,
        program: Program,
        course: Course,
        peak_flops: float,
    ) -> None:
        self.log, self.display, self.goodput = log, display, goodput
        train = program.config.train
        self._trackers = trackers
        self._log_every, self._last_step = train.log_every, train.steps
        self._is_bound = train.objective.is_bound
        self._layers_every = layers.every if (layers := train.layer_statistics) else None
        self._layer_counts = statistics.counts(program.abstract.params, program.config.model)
        self._course, self._peak_flops = course, peak_flops
        self._devices = program.mesh.local_devices
        self._running: deque[tuple[int, Metrics]] = deque()
        self._overflowed = self._idled = False  # whether it has been told
        shares = [ffn.active_share for ffn in program.config.model.ffns() if ffn.experts]
        self._equal_share = min(shares, default=0.0) * program.tokens_per_step
        self.finished = 0  # the newest step that is known to have ended
        self.nonfinite = 0  # updates skipped in a row up to it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self.goodput.spent_on("saving"):
            self.log.close()
            close_all(self._trackers)

    def start(self, step: int, nonfinite: int) -> None:
        """Begin to count time; `step` updates have been tried so far."""
        self.finished, self.nonfinite = step, nonfinite
        self._row_step, self._row_clock = step, self._clock()

    def add(self, step: int, metrics: Metrics) -> None:
        """Take the metrics of a step just launched, and finish the step before it."""
        self._running.append((step, metrics))
        if len(self._running) > 1:
            self._finish(*self._running.popleft())

    def drain(self) -> None:
        """Finish every step that was launched."""
        while self._running:
            self._finish(*self._running.popleft())

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Write an evaluation's row, which says so if its figures are bounds."""
        row = {"step": step, "eval/loss": evaluation.loss}
        every = evaluation.figures | evaluation.layers
        row |= {f"eval/{name}": value for name, value in every.items()}
        bound = ""
        if self._is_bound:
            row["eval/is_bound"], bound = 1, "at most "
        self._write(row)
        self.display.say(
            f"step {step:,}  validation loss {bound}{evaluation.loss:.4f}, {evaluation.told()}"
        )

    def measured(self, step: int, results: Mapping[str, Result]) -> None:
        """Write the row of the suites."""
        row: dict[str, float | int | None] = {"step": step}
        for name, result in results.items():
            task = name.partition(":")[2] or name
            row |= {f"suite/{task}/{metric}": value for metric, value in result.metrics.items()}
        self._write(row)
        shown = (f"{key.removeprefix('suite/')} {row[key]:.4g}" for key in row if key != "step")
        self.display.say(f"step {step:,}  {', '.join(shown)}")

    def sampled(self, step: int, text: str, pictures: Sequence[Sample] = ()) -> None:
        """Show text that the model wrote, or what it says of pictures."""
        for tracker in self._trackers:
            tracker.write_text("sample", text, step)
            if pictures:
                tracker.write_pictures("samples", pictures, step)

    def _finish(self, step: int, metrics: Metrics) -> None:
        found = {name: value for name, value in metrics.items() if name != "layers"}
        values = {name: value.item() for name, value in jax.device_get(found).items()}
        self.finished, self.nonfinite = step, values["nonfinite"]
        if self.nonfinite:
            self.display.say(
                f"step {step:,}  loss {values['loss']}, gradient norm {values['grad_norm']}: not "
                f"finite, update skipped ({self.nonfinite} in a row)"
            )
        self._tell_of_overflow(step, values.get("inputs/overflow", 0.0))
        self._tell_of_idle_experts(step, values.get("layers/idle_experts", 0.0))
        is_last = step == self._last_step
        if self._layers_every and (is_last or step % self._layers_every == 0):
            layers = jax.device_get(metrics["layers"])
            for row in statistics.rows(step, layers, self._layer_counts):
                self._write(row)
        if step % self._log_every and step != 1 and not is_last:
            self.display.stepped(step)
            return
        now = self._clock()
        course, before, elapsed = self._course, self._row_step, now - self._row_clock
        flops = course.flops(step) - course.flops(before)
        self._row_step, self._row_clock = step, now
        row = {
            "step": step,
            "loss": values.pop("loss"),
            "learning_rate": values.pop("learning_rate"),
            "grad_norm": values.pop("grad_norm"),
            "tokens": course.tokens(step),
            "loss_tokens": int(values.pop("tokens")),
            **values,
            "tokens_per_second": (course.tokens(step) - course.tokens(before)) / elapsed,
            "step_seconds": elapsed / (step - before),
            "mfu": flops / elapsed / self._peak_flops,
            **allocated(self._devices),
        }
        self._write(row)
        self.display.logged(row)

    def _tell_of_overflow(self, step: int, overflow: float) -> None:
        if overflow and not self._overflowed:
            self._overflowed = True
            self.display.say(
                f"step {step:,}  {overflow:.2%} of the tokens would begin a chunk beyond "
                f"model.inputs.share, and belong to the last chunk of their document instead. This "
                f"is told once; metrics.jsonl has inputs/overflow at every row. If it goes on, "
                f"raise the share"
            )

    def _tell_of_idle_experts(self, step: int, idle: float) -> None:
        """Where chance alone would give every expert some tokens."""
        if idle and not self._idled and self._equal_share >= MANY:
            self._idled = True
            self.display.say(
                f"step {step:,}  warning: {idle:.1f} experts per layer, on average, took no token "
                f"in this step, where equal shares are {self._equal_share:,.0f} tokens; an expert "
                f"without tokens learns nothing. Larger model.ffn.balance.auxiliary or "
                f"balance.bias_rate spread tokens. This warning comes once; metrics.jsonl goes on "
                f"with layers/idle_experts"
            )

    def _write(self, row: Row) -> None:
        self.log.write(row)
        for tracker in self._trackers:
            tracker.write(row)

    def _clock(self) -> float:
        return time.perf_counter() - self.goodput.paused
