"""The cells of an arena: one run directory for every task, contestant, learning rate and seed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from jaxformer.arena.config import ArenaConfig
from jaxformer.arena.match import Matched
from jaxformer.config import Config, DataConfig
from jaxformer.errors import UserError, did_you_mean
from jaxformer.paths import replace_text
from jaxformer.reading import read_json_object

Result = dict[str, Any]

DIVERGED, IMPOSSIBLE = "diverged", "impossible: "


class HeldOut(NamedTuple):
    """Rows to test a trained cell on: `multiple` times the trained length, at difficulty `level`
    (None: as in training)."""

    multiple: int
    level: float | None
    data: DataConfig


@dataclass(frozen=True)
class Cell:
    """One training run, and the file with what was measured at its end."""

    task: str
    contestant: str
    learning_rate: float
    seed: int
    config: Config
    held_out: tuple[HeldOut, ...]

    @property
    def directory(self) -> Path:
        return Path(self.config.run.dir)

    @property
    def result_file(self) -> Path:
        return self.directory / "result.json"

    @cached_property
    def name(self) -> str:
        return f"{self.task}/{self.contestant}/lr_{self.learning_rate:g}/seed_{self.seed}"

    @property
    def tried_file(self) -> Path:
        """Marks a cell that this command has tried: workers that reach it later skip it."""
        return self.directory.parent / f".{self.directory.name}.tried"

    def result(self) -> Result | None:
        """The cell's result; None if it has not ended, or ended for a reason unrelated to its
        contestant."""
        if not self.result_file.exists():
            return None
        result = read_json_object(self.result_file.read_bytes(), str(self.result_file))
        return result if _is_of_contestant(result["failed"]) else None

    def write_result(self, result: Result) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        replace_text(self.result_file, json.dumps(result, indent=1) + "\n")


def without_result(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.result() is None]


def _is_of_contestant(failed: str | None) -> bool:
    return failed is None or failed == DIVERGED or failed.startswith(IMPOSSIBLE)


def cells(arena: ArenaConfig, matched: Matched) -> list[Cell]:
    """All cells; those that share a program are next to each other.

    Raises:
        UserError: a test's rows cannot be made.
    """
    found = []
    for (task, contestant), solved in matched.solved.items():
        plain = arena.config(task, contestant, solved)
        tests = tuple(held_out(arena, task, plain.data))
        for rate in arena.learning_rates:
            for seed in arena.seeds:
                directory = f"{arena.dir}/{task}/{contestant}/lr_{rate:g}/seed_{seed}"
                optimizer = plain.optimizer.model_copy(update={"learning_rate": rate})
                train = plain.train.model_copy(update={"seed": seed})
                run = plain.run.model_copy(update={"dir": directory, "group": arena.name})
                changes = {"optimizer": optimizer, "train": train, "run": run}
                config = plain.model_copy(update=changes)
                found.append(Cell(task, contestant, rate, seed, config, tests))
    return found


def held_out(arena: ArenaConfig, task: str, data: DataConfig) -> list[HeldOut]:
    """What cells of a task are tested on, the trained length and difficulty first."""
    entry = arena.tasks[task]
    levels = (None, *(entry.difficulty.values if entry.difficulty else ()))
    return [
        HeldOut(multiple, level, _test_data(arena, task, data, multiple, level))
        for level in levels
        for multiple in entry.lengths
    ]


def _test_data(
    arena: ArenaConfig, task: str, data: DataConfig, multiple: int, level: float | None
) -> DataConfig:
    changes: dict[str, Any] = {"sequence_length": data.sequence_length * multiple}
    difficulty = arena.tasks[task].difficulty
    if difficulty is not None and level is not None:
        fields = type(data.task).model_fields if data.task is not None else {}
        if difficulty.field not in fields:
            raise UserError(
                f"tasks.{task}.difficulty.field '{difficulty.field}' is not a field of its task; "
                f"allowed: {', '.join(fields) or 'none, it is text'}."
                f"{did_you_mean(difficulty.field, fields)}"
            )
        assert data.task is not None
        changes["task"] = data.task.model_dump() | {difficulty.field: level}
    try:
        return DataConfig.model_validate(data.model_dump() | changes)
    except ValidationError as error:
        said = "; ".join(mistake["msg"] for mistake in error.errors())
        at = "" if difficulty is None or level is None else f", {difficulty.field} {level}"
        raise UserError(f"tasks.{task} cannot be tested at {multiple}×{at}: {said}") from None
