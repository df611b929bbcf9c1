"""What a run says before its first step and after its last."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.config import Config
from jaxformer.data.audio.packing import PackedRecordings
from jaxformer.data.audio.rows import AudioRows
from jaxformer.data.audio.transcripts import TranscriptRows
from jaxformer.data.pairs import PairRows
from jaxformer.parallel.compiler import described
from jaxformer.parallel.rules import bytes_per_device
from jaxformer.terminal import in_bytes
from jaxformer.train.mfu import Peak
from jaxformer.train.program import Program, unrolls
from jaxformer.train.stages import RunStage
from jaxformer.xla_flags import FLAG


def plan_of(program: Program, stages: Sequence[RunStage], peak: Peak) -> str:
    """What will happen: parameters, tokens, FLOPs, memory, mesh, and what `auto` chose."""
    config, train = program.config, program.config.train
    layers = "unrolled" if unrolls(config, program.mesh) else "scanned"
    chosen = " (auto)" if train.unroll_layers == "auto" else ""
    axes = ", ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items())
    device = program.mesh.devices.flat[0]
    state = bytes_per_device(program.abstract, program.shardings)
    used = dict.fromkeys(kernel for each in stages for kernel in each.program.kernels)
    kernels = {"kernels": ", ".join(used)} if used else {}
    has_experts = any(ffn.experts for ffn in config.model.ffns())
    of_them = f", {program.num_active:,} of them active per token" if has_experts else ""
    frozen = program.num_parameters - program.num_trained
    trained = {"trained": f"{program.num_trained:,} parameters, {frozen:,} are frozen"}
    options = program.compiler_options
    compiler = {"compiler": described(options)} if options else {}
    if device.platform == "cpu" and FLAG in os.environ.get("XLA_FLAGS", ""):
        compiler = {"compiler": "YNNPACK fuses no reductions (your own XLA_FLAGS take precedence)"}
    pipelines = dict.fromkeys(str(each.program.pipeline) for each in stages)
    pipeline = {"pipeline": "; then ".join(pipelines)} if program.pipeline else {}
    lines = {
        "model": f"{program.num_parameters:,} parameters{of_them}, layers {layers}{chosen}",
        **(trained if frozen else {}),
        **kernels,
        **_rows_of(config, stages),
        "optimizer": f"{config.optimizer.kind}, learning rate {config.optimizer.learning_rate:g}, "
        f"{config.optimizer.schedule.kind} after {config.optimizer.schedule.warmup_steps} steps of "
        f"warm-up, compute in {train.precision}",
        "mesh": f"{axes}: {program.mesh.size} × {device.device_kind}",
        **pipeline,
        **compiler,
        "memory": f"{in_bytes(state)} of state per device",
        "peak": f"{peak.flops:.3g} FLOP/s ({peak.source}), the reference for MFU",
    }
    return "\n".join(f"{name:<11}{text}" for name, text in lines.items())


def _rows_of(config: Config, stages: Sequence[RunStage]) -> dict[str, str]:
    """The lines on text, batches and steps, with a line for every stage if there are several."""
    tokens = sum(each.steps * each.program.tokens_per_step for each in stages)
    flops = sum(each.steps * each.program.flops_per_step for each in stages)
    steps, tokenizer = f"{config.train.steps:,} steps", f"tokenizer {config.data.tokenizer}"
    if len(stages) == 1:
        [one] = stages
        return {
            "data": f"{_text_of(one)}, {tokenizer}",
            "batch": _batch_of(one),
            "run": f"{steps}, {tokens:,} tokens{_epochs_of(one)}, {flops:.3g} FLOPs",
        }
    return {
        "data": f"{len(stages)} stages, {tokenizer}",
        **{
            f"stage {each.number}": f"steps {each.stage.start:,} to {each.stage.until:,}: "
            + (
                f"{_batch_of(each)}; {_text_of(each)}{_epochs_of(each)}"
                if not each.past
                else "past"
            )
            for each in stages
        },
        "run": f"{steps}, {tokens:,} tokens, {flops:.3g} FLOPs",
    }


def _text_of(each: RunStage) -> str:
    data, parts = each.stage.data, each.stores.training
    if data.task is not None:
        return f"task {data.task.kind}, every row a new one"
    sources, tokens = ", ".join(entry.source for entry in data.sources), _tokens_of(each)
    if data.images is not None:
        shape, classes = "×".join(map(str, data.images.shape)), each.stores.tokenizer.vocab_size
        count, changes = sum(map(len, parts)), data.images.augment.words
        beside = "texts" if data.images.text is not None else f"{classes:,} classes"
        text = f"{sources}: {count:,} pictures of {shape} to train on, {beside}"
        return text + (f", augmented: {changes}" if changes else "")
    if data.audio is not None:
        every = [part.recordings if isinstance(part, TranscriptRows) else part for part in parts]
        rows = [part for part in every if isinstance(part, AudioRows | PackedRecordings)]
        words, filled = "; ".join(part.words for part in rows), sum(part.filled for part in rows)
        changes, share = data.audio.augment.words, filled / sum(part.tokens for part in rows)
        text = f"{sources}: {words} to train on, {share:.0%} of their places hold sound"
        return text + (f", augmented: {changes}" if changes else "")
    if data.pairs is not None:
        words = "; ".join(part.words for part in parts if isinstance(part, PairRows))
        return f"{sources}: {words} to train on"
    text = f"{sources}: {tokens:,} tokens to train on"
    if any("loss_mask" in part.manifest() for part in parts):
        text += f" ({sum(part.loss_tokens() for part in parts) / tokens:.1%} in the loss)"
    return text


def _epochs_of(each: RunStage) -> str:
    if each.stage.data.task is not None:
        return ""
    return f" ({each.steps * each.program.tokens_per_step / _tokens_of(each):.2f} epochs)"


def _tokens_of(each: RunStage) -> int:
    return sum(part.tokens for part in each.stores.training)


def _batch_of(each: RunStage) -> str:
    rows, length, parts = each.stage.batch_size, each.stage.data.sequence_length, ""
    what = {"images": "pictures", "audio": "recordings"}.get(each.stage.data.kind, "rows")
    if (audio := each.stage.data.audio) is not None and audio.pack:
        what = "rows of recordings"
    if (accumulation := each.program.config.train.accumulation) > 1:
        parts = f" in {accumulation} micro-batches"
    return f"{rows} {what} × {length} = {each.program.tokens_per_step:,} tokens{parts}"


def compiled_in(seconds: float, memory: int) -> str:
    return f"compiled in {seconds:.1f} s; a step takes {in_bytes(memory)} per device"


def commands(directory: RunDirectory, config: Config, *, finished: bool) -> str:
    """The exact commands to continue a run, or to use it."""
    resume = f"jaxformer train {_quoted(directory.config)}"
    if not finished:
        return f"to resume:   {resume}"
    run, schedule = _quoted(directory.path), config.optimizer.schedule.kind
    # The rate of any other schedule depends on how long the run is.
    accept = "" if schedule == "constant" else " 'run.accept_changes=[schedule]'"
    use = f'to generate: jaxformer generate {run} --prompt "..."'
    if (instead := config.instead) is not None:
        use = f"to use it:   jaxformer {instead.replace('RUN', run)}"
    return "\n".join(
        [
            f"to continue: {resume} train.steps=MORE{accept}",
            f"to evaluate: jaxformer eval {run}",
            use,
        ]
    )


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
