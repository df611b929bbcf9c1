"""What must hold before a run starts, and what it records about itself."""

import math
import os
import shutil
from collections.abc import Collection
from itertools import pairwise

import jax
from orbax.checkpoint.utils import TMP_DIR_SUFFIX

from jaxformer.checkpoint.integrity import DamagedError
from jaxformer.checkpoint.manager import Checkpoints, Json
from jaxformer.checkpoint.manifest import git_revision, source_hash, versions
from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.config import Config
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import DoesNotFit, UserError
from jaxformer.memory import check_fits
from jaxformer.parallel import processes
from jaxformer.parallel.rules import bytes_per_device
from jaxformer.paths import file_sizes, is_remote, nearest_existing
from jaxformer.train.metrics import read_rows
from jaxformer.train.program import Program, trees
from jaxformer.train.schedule import make_schedule
from jaxformer.train.stages import CompiledStages


def check_stages(config: Config) -> None:
    """Check that every stage changes something. A command that evaluates a run does not ask: its
    overrides may make stages equal.

    Raises:
        UserError: one trains on the same as the one before.
    """
    for number, (before, now) in enumerate(pairwise(config.stages), start=1):
        if (before.data, before.batch_size) == (now.data, now.batch_size):
            raise UserError(
                f"data.stages.{number} trains on the same as data.stages.{number - 1}, in batches "
                f"of the same size; change something, or leave it out"
            )


def is_complete(directory: RunDirectory, config: Config) -> bool:
    """Whether the last step is saved intact, with every evaluation that the configuration asks for.
    All processes ask together."""
    last = config.train.steps
    if not all(processes.gather(directory.has_checkpoint(last))):
        return False
    with Checkpoints(directory.checkpoints, read_only=True) as checkpoints:
        try:
            checkpoints.verify(last)
        except DamagedError:  # reported when the run resumes from an earlier step
            return False
    validates = config.data.validation_fraction > 0 or config.data.validation_source is not None
    keys = {key for row in read_rows(directory.metrics) if row["step"] == last for key in row}
    measured = not config.eval.suites or any(key.startswith("suite/") for key in keys)
    return (not validates or "eval/loss" in keys) and measured


def schedule_notes(directory: RunDirectory, config: Config) -> list[str]:
    """A note if the learning rate changes at the newest checkpoint and the change is accepted.

    Raises:
        UserError: it changes, and run.accept_changes does not have `schedule`.
    """
    step, before = directory.newest_step(), directory.saved()
    if step is None or before is None:
        return []
    was, now = (_rate_at(step, each) for each in (before, config))
    if math.isclose(was, now, rel_tol=1e-6):
        return []
    change = (
        f"at step {step:,}, from which the run in {directory.path} resumes, the learning rate was "
        f"{was:.3g} ({_schedule(before)}) and would be {now:.3g} ({_schedule(config)})"
    )
    if "schedule" in config.run.accept_changes:
        return [f"accepted: {change}"]
    raise UserError(
        f"{change}; give run.accept_changes=[schedule] to resume all the same, with a lower "
        f"optimizer.learning_rate if this one is too high, or undo the change"
    )


def _rate_at(step: int, config: Config) -> float:
    optimizer = config.optimizer
    factor = make_schedule(optimizer.schedule, config.train.steps)(step)
    return optimizer.learning_rate * float(factor)


def _schedule(config: Config) -> str:
    return f"{config.optimizer.schedule.kind} over {config.train.steps:,} steps"


def check_room(directory: RunDirectory, program: Program) -> None:
    """Check that the disk has room for one checkpoint, with the space of interrupted saves as free;
    a bucket's room is not known.

    Raises:
        UserError: it has less room; the message has both numbers.
    """
    if is_remote(directory.path):
        return
    there = nearest_existing(directory.path)
    left = directory.checkpoints.glob(f"*{TMP_DIR_SUFFIX}")  # cleared away before the first save
    free = shutil.disk_usage(there).free + sum(sum(file_sizes(each).values()) for each in left)
    arrays = jax.tree.leaves(trees(program.abstract))
    needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in arrays)
    if free < needed:
        raise UserError(
            f"run.dir {directory.path} is on a disk with {free:,} bytes free, and a checkpoint "
            f"takes {needed:,}; make room, or give a folder on another disk"
        )


def check_state(program: Program) -> None:
    """Check that the state fits into a device, before anything is allocated.

    Raises:
        DoesNotFit: it does not.
    """
    check_fits(
        program.mesh.local_devices[0],
        bytes_per_device(program.abstract, program.shardings),
        "parameters and optimizer state take",
        "split them over devices with mesh.preset=fsdp, or make the model smaller",
    )


def check_step(program: Program, compiled: CompiledStages) -> None:
    """Check that a step, as it was compiled, fits into a device that holds the state.

    Raises:
        DoesNotFit: it does not.
    """
    check_fits(
        program.mesh.local_devices[0],
        compiled.bytes_per_device,
        "a step takes",
        "lower train.batch_size, raise train.accumulation, or set train.remat=full",
        held=bytes_per_device(program.abstract, program.shardings),
    )


def check_vocabulary(config: Config, tokenizer: Tokenizer) -> None:
    size = config.model.vocab_size
    if size is not None and size < tokenizer.vocab_size:
        raise DoesNotFit(
            f"model.vocab_size is {size}, smaller than the tokenizer {config.data.tokenizer}'s "
            f"{tokenizer.vocab_size}; leave it out, or give at least {tokenizer.vocab_size}"
        )


def check_same_data(config: Config, saved: Json, manifest: Json) -> None:
    """Check that the text and the tokenizer are those of the checkpoint.

    Raises:
        UserError: they are not; run.accept_changes may allow other text.
    """
    stages = {part.get("stage") for part in manifest["data"]}  # without those that are past
    before, now = _identity(saved, stages), _identity(manifest, stages)
    for part, accept in (("tokenizer", ""), ("data", ", or run.accept_changes=[data]")):
        if before[part] != now[part] and part not in config.run.accept_changes:
            raise UserError(
                f"the {part} of {config.run.dir} has changed since its newest checkpoint, so the "
                f"run would not continue as it began; restore it, or give another run.dir{accept}\n"
                f"  before: {saved[part]}\n  now:    {manifest[part]}"
            )


def _identity(manifest: Json, stages: Collection[int | None]) -> Json:
    """What identifies the text and the tokenizer, whatever their names and places."""
    data = manifest["data"]
    if isinstance(data, list):  # an imported model has none
        data = [
            {key: part[key] for key in part if key != "source"}
            for part in data
            if part.get("stage") in stages
        ]
    return {"tokenizer": manifest["tokenizer"]["fingerprint"], "data": data}


def manifest_of(recorded: Config, program: Program, tokenizer: Tokenizer, data: list[Json]) -> Json:
    """The manifest of a run and its `data`, with the configuration as config.yaml has it."""
    return {
        "config": recorded.model_dump(mode="json"),
        "parameters": program.num_parameters,
        "tokenizer": {"name": recorded.data.tokenizer, "fingerprint": tokenizer.fingerprint},
        "data": data,
        "mesh": dict(program.mesh.shape),
        "compiler_options": program.compiler_options,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": versions(),
        "git_revision": git_revision(),
        "source": source_hash(),
    }
