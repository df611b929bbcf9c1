"""What a run says before its first step and after its last."""

import os
import shlex
from pathlib import Path

from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.config import Config
from jaxformer.data.stores import Stores
from jaxformer.parallel.compiler import described
from jaxformer.parallel.rules import bytes_per_device
from jaxformer.terminal import in_bytes
from jaxformer.train.mfu import Peak
from jaxformer.train.program import Program, unrolls
from jaxformer.xla_flags import FLAG


def plan_of(program: Program, stores: Stores, peak: Peak) -> str:
    """What will happen: parameters, tokens, FLOPs, memory, mesh, and what `auto` chose."""
    config = program.config
    train, length, tokens = config.train, config.data.sequence_length, program.tokens_per_step
    in_all, epoch = tokens * train.steps, sum(part.tokens for part in stores.training)
    sources = ", ".join(source.source for source in config.data.sources)
    text, epochs = f"{sources}: {epoch:,} tokens to train on", f" ({in_all / epoch:.2f} epochs)"
    if config.data.task is not None:
        text, epochs = f"task {config.data.task.kind}, every row a new one", ""
    elif any("loss_mask_sha256" in part.manifest() for part in stores.training):
        share = sum(part.loss_tokens() for part in stores.training) / epoch
        text += f" ({share:.1%} in the loss)"
    micro = f" in {train.accumulation} micro-batches" if train.accumulation > 1 else ""
    layers = "unrolled" if unrolls(config, program.mesh) else "scanned"
    chosen = " (auto)" if train.unroll_layers == "auto" else ""
    axes = ", ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items())
    device = program.mesh.devices.flat[0]
    state = bytes_per_device(program.abstract, program.shardings)
    kernels = {"kernels": ", ".join(program.kernels)} if program.kernels else {}
    frozen = program.num_parameters - program.num_trained
    trained = {"trained": f"{program.num_trained:,} parameters, {frozen:,} are frozen"}
    options = program.compiler_options
    compiler = {"compiler": described(options)} if options else {}
    if device.platform == "cpu" and FLAG in os.environ.get("XLA_FLAGS", ""):
        compiler = {"compiler": "YNNPACK fuses no reductions (your own XLA_FLAGS take precedence)"}
    pipeline = {"pipeline": str(program.pipeline)} if program.pipeline else {}
    lines = {
        "model": f"{program.num_parameters:,} parameters, layers {layers}{chosen}",
        **(trained if frozen else {}),
        **kernels,
        "data": f"{text}, tokenizer {config.data.tokenizer}",
        "batch": f"{train.batch_size} rows × {length} = {tokens:,} tokens{micro}",
        "run": f"{train.steps:,} steps, {in_all:,} tokens{epochs}, "
        f"{program.flops_per_step * train.steps:.3g} FLOPs",
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
    return "\n".join(
        [
            f"to continue: {resume} train.steps=MORE{accept}",
            f"to evaluate: jaxformer eval {run}",
            f'to generate: jaxformer generate {run} --prompt "..."',
        ]
    )


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
