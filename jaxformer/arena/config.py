"""The file of an arena: who is compared, on what, and what is the same for all of them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from jaxformer.config import Config
from jaxformer.config.places import LocalPlace
from jaxformer.errors import UserError, did_you_mean
from jaxformer.schema.base import Schema
from jaxformer.schema.explanations import explain
from jaxformer.schema.loading import load_as

Keys = dict[str, Any]


class MatchConfig(Schema):
    """Every contestant is given the baseline's `budget` by choosing its value of `solve`.

    parameters: without embeddings and head. training_flops: of one token, forward and backward.
    state_bytes: what decoding keeps for one sequence of `context` tokens. seconds: of the whole
    training, measured; `solve` must be train.steps.
    """

    budget: Literal["parameters", "training_flops", "state_bytes", "seconds"] = "parameters"
    solve: str = "model.ffn.d_hidden"
    multiple_of: PositiveInt = 4
    context: PositiveInt = 2048
    tolerance: PositiveFloat = 0.01


class Difficulty(Schema):
    """A field of data.task, and the values that are tested besides the trained one."""

    field: str
    values: Annotated[tuple[int | float, ...], Field(strict=False, min_length=1)]


class TaskEntry(Schema):
    """What contestants are trained on, as keys over `base`, and the multiples of the trained length
    at which they are tested, each at every `difficulty`."""

    keys: Keys = Field(default_factory=dict)
    lengths: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)] = (1,)
    difficulty: Difficulty | None = None


class EfficiencyConfig(Schema):
    """Speed and memory measured after the cells, on the data of `task`: training at `lengths`,
    decoding after `contexts`."""

    task: str
    lengths: Annotated[tuple[PositiveInt, ...], Field(strict=False)] = (256, 1024)
    contexts: Annotated[tuple[PositiveInt, ...], Field(strict=False)] = (256, 2048)


class Check(Schema):
    """One inequality of a published finding: `better` beats `than`, a contestant or a number.

    `by` is the least improvement, in the metric's own units; a negative one says by how much the
    mean may be worse, where a finding is that two are equal. `at` is a multiple of the trained
    length; `level` and `than_level` are values of the task's difficulty, that of training if null.
    `turns` are those of a model whose tokens leave a loop, and fewer are better.
    """

    task: str
    metric: Literal[
        "loss", "bits_per_byte", "accuracy", "batch_accuracy", "label_error_rate", "turns"
    ]
    better: str
    than: str | float
    by: float = 0.0
    at: PositiveInt = 1
    level: float | None = None
    than_level: float | None = None


class Finding(Schema):
    """A published result, and the checks that must hold here to call it reproduced."""

    claim: str
    published: str
    source: str
    checks: Annotated[tuple[Check, ...], Field(strict=False, min_length=1)]
    why_not: str | None = Field(None, description="the supposed reason, if it is not reproduced")
    advice: str | None = Field(
        None, description="what it says on whether to improve a Transformer or to replace it"
    )


class ArenaConfig(Schema):
    """contestants × learning rates × seeds on every task.

    A cell's configuration is `base`, then the task's keys, then the contestant's, with the learning
    rate, the seed and a directory of its own. Sections merge key by key; a section that names
    another `kind` replaces the one before.
    """

    baseline: str
    base: Keys
    contestants: Annotated[dict[str, Keys], Field(min_length=1)]
    tasks: Annotated[dict[str, TaskEntry], Field(min_length=1)]
    learning_rates: Annotated[tuple[PositiveFloat, ...], Field(strict=False, min_length=1)]
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(strict=False, min_length=1)] = (0, 1, 2)
    match: MatchConfig | None = MatchConfig()
    efficiency: EfficiencyConfig | None = None
    scaling: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="tasks that differ only in size, the smallest first"
    )
    finding: Finding | None = None
    dir: Annotated[LocalPlace, AfterValidator(os.path.expanduser)] = "runs/arena"

    @model_validator(mode="after")
    def _names_are_known(self) -> "ArenaConfig":
        if self.baseline not in self.contestants:
            raise ValueError(
                f"baseline '{self.baseline}' is not a contestant; allowed: "
                f"{', '.join(self.contestants)}.{did_you_mean(self.baseline, self.contestants)}"
            )
        for name in (*self.contestants, *self.tasks):
            if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
                raise ValueError(f"'{name}' names a folder; allowed: letters, digits, - _ .")
        named = [self.efficiency.task] if self.efficiency else []
        for task in (*named, *self.scaling):
            if task not in self.tasks:
                raise ValueError(
                    f"'{task}' is not a task; allowed: {', '.join(self.tasks)}."
                    f"{did_you_mean(task, self.tasks)}"
                )
        if len(self.scaling) == 1:
            raise ValueError(f"scaling has one task, {self.scaling[0]}; a law needs two or more")
        for check in self.finding.checks if self.finding else ():
            names = [check.better, *([check.than] if isinstance(check.than, str) else [])]
            unknown = [name for name in names if name not in self.contestants]
            if unknown or check.task not in self.tasks:
                raise ValueError(
                    f"a check names {', '.join([*unknown, check.task])}; allowed: the contestants "
                    f"{', '.join(self.contestants)} and the tasks {', '.join(self.tasks)}"
                )
            if check.at not in self.tasks[check.task].lengths:
                raise ValueError(
                    f"a check is about length {check.at} of {check.task}, tested at "
                    f"{self.tasks[check.task].lengths}"
                )
        return self

    @property
    def name(self) -> str:
        """The name of its folder."""
        return os.path.basename(os.path.abspath(self.dir))

    def config(self, task: str, contestant: str, solved: Mapping[str, int], **keys: Keys) -> Config:
        """The configuration of a contestant on a task; `solved` and `keys` take precedence.

        Raises:
            UserError: it is not valid; the message has every mistake.
        """
        data = merged(self.base, self.tasks[task].keys)
        data = merged(data, self.contestants[contestant])
        for key, value in solved.items():
            data = merged(data, nested(key, value))
        data = merged(data, keys)
        try:
            config = Config.model_validate(data)
        except ValidationError as error:
            mistakes = "\n  ".join(mistake.text for mistake in explain(error, Config))
            raise UserError(f"contestant {contestant} on {task}:\n  {mistakes}") from error
        if config.data.stages is not None:
            raise UserError(
                f"contestant {contestant} on {task}: data.stages is given, but contestants are "
                f"matched and tested at one length, on one mixture; leave it out"
            )
        if config.data.task is not None and not config.train.objective.is_causal:
            raise UserError(
                f"contestant {contestant} on {task}: train.objective is "
                f"{config.train.objective.kind}, which has no accuracy, and a synthetic task is "
                f"compared by it; compare it on text"
            )
        if config.data.kind != "text":
            self._check_rows(task, config.data.kind)
        return config

    def _check_rows(self, task: str, kind: str) -> None:
        """Refuse what takes rows of other lengths than those of pictures or recordings.

        Raises:
            UserError: lengths or efficiency ask for them.
        """
        lengths = self.tasks[task].lengths
        if lengths != (1,):
            raise UserError(
                f"tasks.{task}.lengths is {list(lengths)}, but data.kind is {kind}, whose rows "
                f"have one size; leave it out"
            )
        if self.efficiency is not None and self.efficiency.task == task:
            raise UserError(
                f"efficiency.task is {task}, but data.kind is {kind}, and speed is measured by the "
                f"length of rows of text; give a task of text, or leave efficiency out"
            )


def load_arena(path: str | Path, overrides: list[str]) -> ArenaConfig:
    """Read an arena's file, and apply overrides `key.path=value`.

    Raises:
        UserError: with one line for every mistake.
    """
    return load_as(ArenaConfig, path, overrides)


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> Keys:
    """`over` on top of `under`, section by section."""
    result = dict(under)
    for key, value in over.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            same = value.get("kind", before.get("kind")) == before.get("kind")
            result[key] = merged(before, value) if same else value
        else:
            result[key] = value
    return result


def nested(path: str, value: Any) -> Keys:
    """`a.b` and 1 as {a: {b: 1}}."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return value
