"""A run's directory: what is in it, and whether a configuration may resume it."""

import json
import os
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from jaxformer.config import Config, Stage
from jaxformer.config.local_paths import as_they_are_here, made_absolute
from jaxformer.config.named_runs import named_runs, with_named_runs
from jaxformer.errors import UserError
from jaxformer.paths import (
    is_remote,
    locate_path,
    nearest_existing,
    remove_tree,
    replace_text,
    same_place,
)
from jaxformer.run_files import (
    BASE,
    CHECKPOINTS,
    CONFIG,
    KEPT_RUNS,
    MANIFEST,
    METRICS,
    PROFILE,
    TEACHER,
    TOKENIZER,
    TRACKERS,
    own_run,
    own_tokenizer,
)
from jaxformer.schema.loading import load_as

# Keys that may change when a run resumes: they decide cadence, place or speed, not results.
FREE_SECTIONS = ("eval", "checkpoint", "mesh", "run")
FREE_KEYS = (
    "data.cache_bytes",
    "data.cache_dir",
    "data.prefetch",
    "data.store_dir",
    "train.accumulation",
    "train.kernels.attention",
    "train.layer_statistics",
    "train.layer_statistics.every",
    "train.log_every",
    "train.max_nonfinite_steps",
    "train.objective.teacher",  # may lie elsewhere; its weights are compared
    "train.profile",
    "train.profile.start",
    "train.profile.steps",
    "train.remat",
    "train.steps",  # may grow; checked on its own
    "train.unroll_layers",
)
# Keys that change the results from here on, and may change if run.accept_changes allows it.
ACCEPTABLE = {
    "data.source": "data",
    "data.format": "data",
    "data.column": "data",
    "data.invalid_utf8": "data",
    "data.missing_text": "data",
    "data.bad_rows": "data",
    "data.min_chars": "data",
    "data.max_chars": "data",
    "data.validation_fraction": "data",
    "data.validation_source": "data",
    "data.sequence_length": "data",
    "train.batch_size": "data",
    "train.seed": "seed",
    "optimizer.learning_rate": "schedule",
    "optimizer.adamw_learning_rate": "schedule",
    "optimizer.schedule.kind": "schedule",
    "optimizer.schedule.warmup_steps": "schedule",
    "optimizer.schedule.final_fraction": "schedule",
    "optimizer.schedule.decay_steps": "schedule",
}


class RunDirectory:
    """Paths of a run: config.yaml, metrics.jsonl, manifest.json, checkpoints/, samples.txt,
    profile/; its copies in tokenizer/, base/ and teacher/ (see `own_copies`); trackers.json (see
    `train.trackers`); and, while it has a writer, writer.json (see `lock`)."""

    def __init__(self, path: str | Path) -> None:
        self.path = path = locate_path(path)
        self.config = path / CONFIG
        self.metrics = path / METRICS
        self.manifest = path / MANIFEST
        self.checkpoints = path / CHECKPOINTS
        self.tokenizer = path / TOKENIZER
        self.base = path / BASE
        self.teacher = path / TEACHER
        self.trackers = path / TRACKERS
        self.samples = path / "samples.txt"
        self.profile = path / PROFILE

    @property
    def has_checkpoints(self) -> bool:
        """Whether there is a complete checkpoint."""
        return self.newest_step() is not None

    def newest_step(self) -> int | None:
        """The step of the newest complete checkpoint."""
        folder = self.checkpoints
        steps = folder.iterdir() if folder.is_dir() else ()
        return max((int(each.name) for each in steps if is_finished(each)), default=None)

    def has_checkpoint(self, step: int) -> bool:
        """Whether the checkpoint of `step` is complete."""
        checkpoint = self.checkpoints / str(step)
        return checkpoint.is_dir() and is_finished(checkpoint)

    def without_checkpoint(self) -> UserError:
        """The error for a run that needs a checkpoint and has none."""
        folder = self.checkpoints
        found = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
        if not folder.is_dir():
            why = "it has no folder checkpoints/"
        elif not found:
            why = "its folder checkpoints/ is empty"
        else:
            why = f"checkpoints/ has only what interrupted saves have left ({', '.join(found)})"
        return UserError(
            f"{self.path} has no checkpoint yet: {why}; train it first, or wait for one"
        )

    def check(self, config: Config) -> None:
        """Refuse a `config` with which no run may start or resume here; nothing is written.

        Raises:
            UserError: not writable; used, with run.resume `never`; made by another configuration.
        """
        try:
            is_used, goes_on = self.config.exists(), self.has_checkpoints
        except Exception as error:  # any error of a bucket
            raise self._unwritable(str(error)) from error
        if config.run.resume == "never" and is_used:
            raise UserError(
                f"run.dir {self.path} holds a run already and run.resume is never; give another "
                f"run.dir, or run.resume=auto to resume it"
            )
        if goes_on:
            self._check_same_run(config)
        if not is_remote(self.path):
            self._check_writable()

    def _check_writable(self) -> None:
        there = nearest_existing(self.path)
        if not there.is_dir():
            raise self._unwritable(f"{there} is a file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise self._unwritable(f"no permission to write in {there}")

    def make(self) -> None:
        """Make the directory; raises UserError if the file system refuses."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error.strerror or str(error)) from error

    def create(self, config: Config) -> None:
        """Make the directory, and write the configuration into it, as `recorded` has it. Until the
        first checkpoint, copies that were made for another configuration are removed.

        Raises:
            UserError: the file system refuses.
        """
        self.make()
        try:
            before, now = self.saved(), self.recorded(config)
            text = yaml.safe_dump(now.model_dump(mode="json"), sort_keys=False)
            if before and not self.has_checkpoints:
                if before.data.tokenizer != now.data.tokenizer:
                    remove_tree(self.tokenizer)
                kept, named = named_runs(before), named_runs(now)
                for name in KEPT_RUNS:
                    if kept.get(name) != named.get(name):
                        remove_tree(self.path / name)
            replace_text(self.config, text)
        except OSError as error:
            raise self._unwritable(error.strerror or str(error)) from error

    def saved(self) -> Config | None:
        """The configuration as config.yaml was written, without the run's own copies; None if there
        is no such file, or if it cannot be read and the run has no checkpoint."""
        if not self.config.exists():
            return None
        try:
            return self._read()
        except UserError:
            if self.has_checkpoints:
                raise
            return None

    def _read(self) -> Config:
        return made_absolute(load_as(Config, self.config))

    def recorded(self, config: Config) -> Config:
        """The configuration as config.yaml keeps it: with absolute paths, the originals of the
        run's copies, and no accepted changes, which are for one start only."""
        before, now = self.saved(), made_absolute(config)
        run = now.run.model_copy(update={"accept_changes": ()})
        data = now.data
        if before:
            original = before.data.tokenizer
            places = (original, own_tokenizer(self.path, original))
            if any(place and same_place(place, data.tokenizer) for place in places):
                data = data.model_copy(update={"tokenizer": original})
            now_named = named_runs(now)
            originals = {
                name: original
                for name, original in named_runs(before).items()
                if name in now_named
                and (copy := own_run(self.path, name))
                and same_place(copy, now_named[name])
            }
            now = with_named_runs(now, originals)
        return now.model_copy(update={"run": run, "data": data})

    def with_own_copies(self, config: Config) -> Config:
        """`config` with the run's own copies in place of the originals: always those of other runs,
        and that of the tokenizer only if no original is left on a disk to compare with."""
        before = self.saved()
        if before is None:
            return config
        before, now = as_they_are_here(before), as_they_are_here(self.recorded(config))
        data = config.data
        tokenizer = own_tokenizer(self.path, before.data.tokenizer)
        is_same = now.data.tokenizer == before.data.tokenizer
        if tokenizer and is_same and not os.path.exists(os.path.expanduser(data.tokenizer)):
            data = data.model_copy(update={"tokenizer": str(tokenizer)})
        originals = named_runs(before)
        copies = {
            name: str(copy)
            for name, path in named_runs(now).items()
            if originals.get(name) == path and (copy := own_run(self.path, name))
        }
        return with_named_runs(config, copies).model_copy(update={"data": data})

    def _unwritable(self, reason: str) -> UserError:
        return UserError(
            f"run.dir {self.path} cannot be written: {reason}; give a folder of yours, such as "
            f"run.dir=runs/mine"
        )

    def _check_same_run(self, config: Config) -> None:
        before = self._read()
        here = [as_they_are_here(each) for each in (before, self.recorded(config))]
        self._check_same_past(*here)
        old, new = map(_keys, here)
        changed = [
            key
            for key in changed_keys(old, new)
            if _accepted_as(key) not in config.run.accept_changes
        ]
        if changed:
            raise UserError(
                f"run.dir {self.path} holds a run of another configuration; give another run.dir"
                f"{self._other_ways(changed)}, or set back:\n  "
                + "\n  ".join(
                    f"{key}: {_shown(old, key)} before, {_shown(new, key)} now" for key in changed
                )
            )
        if config.train.steps < before.train.steps:
            raise UserError(
                f"train.steps is {config.train.steps}, but that of the run in {self.path} is "
                f"{before.train.steps}; it may grow, not shrink"
            )

    def _check_same_past(self, before: Config, now: Config) -> None:
        """Check that stages that lie wholly in the past are as they were."""
        step = self.newest_step() or 0
        ends = [each.until for config in (before, now) for each in config.stages[:-1]]
        past = max((end for end in ends if end <= step), default=0)
        for old, new in product(before.stages, now.stages):
            start, until = max(old.start, new.start), min(old.until, new.until, past)
            changed = [
                f"{key}: {was} before, {is_now} now"
                for (key, was), is_now in zip(
                    _trained_on(old).items(), _trained_on(new).values(), strict=True
                )
                if was != is_now
            ]
            if start < until and changed:
                raise UserError(
                    f"data.stages: steps {start:,} to {until:,} of the run in {self.path} are past "
                    f"(its newest checkpoint is of step {step:,}), and stages that are past cannot "
                    f"change; give another run.dir, or set back:\n  " + "\n  ".join(changed)
                )

    def _other_ways(self, changed: list[str]) -> str:
        """Another way to continue, if all changes are of one kind."""
        kinds = {_accepted_as(key) for key in changed}
        if None not in kinds:
            return f", run.accept_changes=[{','.join(sorted(filter(None, kinds)))}]"
        keeps_weights = ("optimizer.", "model.depth", "model.further", "train.objective")
        if all(key.startswith(keeps_weights) for key in changed):
            return f", with init.from={self.path} to start from its parameters alone"
        return ""

    def check_shared(self) -> None:
        """Check that this process sees what process 0 has created.

        Raises:
            UserError: it does not.
        """
        if not self.config.exists():
            raise UserError(
                f"run.dir {self.path} was made by process 0, but another process does not see it; "
                f"give a folder on a file system that all processes share, or in a bucket"
            )

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        replace_text(self.manifest, json.dumps(manifest, indent=2) + "\n")


def is_finished(checkpoint: Path) -> bool:
    """Whether a checkpoint is complete: on a disk, its name is a number only then; in a bucket, a
    mark is written last."""
    if not checkpoint.name.isdecimal() or not is_remote(checkpoint):
        return checkpoint.name.isdecimal()
    from orbax.checkpoint.utils import is_checkpoint_finalized

    return is_checkpoint_finalized(checkpoint)


def locate(path: str | Path) -> tuple[RunDirectory, int | None]:
    """The run of a run directory or of one of its `checkpoints/STEP`, and that step or None.

    Raises:
        UserError: the path is neither.
    """
    given = locate_path(path)
    if (given / "config.yaml").is_file():
        return RunDirectory(given), None
    if given.name.isdecimal() and (given.parent.parent / "config.yaml").is_file():
        if not given.is_dir():
            state = "is no folder, as a checkpoint is" if given.exists() else "does not exist"
            raise UserError(f"{given} {state}; look into {given.parent}")
        return RunDirectory(given.parent.parent), int(given.name)
    state = "is no run" if given.exists() else "does not exist"
    raise UserError(
        f"{given} {state}; give a run directory (with a config.yaml), or RUN/checkpoints/STEP"
    )


def changed_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The keys of flat configurations that differ and may decide results."""
    return [
        key
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
        and key not in FREE_KEYS
        and key.partition(".")[0] not in FREE_SECTIONS
    ]


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}; lists are values."""
    if not isinstance(node, dict):
        return {prefix: node}
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        leaves |= flat(value, f"{prefix}.{key}" if prefix else key)
    return leaves


def _keys(config: Config) -> dict[str, Any]:
    """Every key of a configuration and its value, also of those that stages give."""
    keys = flat(config.model_dump(mode="json"))
    for number, stage in enumerate(keys.pop("data.stages") or ()):
        keys |= flat(
            {key: value for key, value in stage.items() if value is not None},
            f"data.stages.{number}",
        )
    return keys


def _accepted_as(key: str) -> str | None:
    """What run.accept_changes must have for a change of `key`; None if nothing allows it."""
    return "data" if key.startswith("data.stages.") else ACCEPTABLE.get(key)


def _trained_on(stage: Stage) -> dict[str, str]:
    """The keys that a stage may change, with their values."""
    data = stage.data
    sources = [entry.model_dump(mode="json") for entry in data.sources]
    values = {
        "source": sources,
        "sequence_length": data.sequence_length,
        "batch_size": stage.batch_size,
    }
    return {key: json.dumps(value) for key, value in values.items()}


def _shown(flat: dict[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "not set"
