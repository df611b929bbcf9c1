"""The cells of an arena: one run directory for every task, contestant, learning rate and seed."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxformer.arena.config import ArenaConfig
from jaxformer.arena.match import Matched
from jaxformer.config import Config
from jaxformer.paths import replace_text

Result = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One training run, and the file of what was measured when it had ended."""

    task: str
    contestant: str
    learning_rate: float
    seed: int
    config: Config

    @property
    def directory(self) -> Path:
        return Path(self.config.run.dir)

    @property
    def result_file(self) -> Path:
        return self.directory / "result.json"

    @cached_property
    def name(self) -> str:
        return f"{self.task}/{self.contestant}/lr_{self.learning_rate:g}/seed_{self.seed}"

    def result(self) -> Result | None:
        """What the cell came to; None while it has not ended."""
        if not self.result_file.exists():
            return None
        return json.loads(self.result_file.read_text(encoding="utf-8"))

    def write_result(self, result: Result) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        replace_text(self.result_file, json.dumps(result, indent=1) + "\n")


def cells(arena: ArenaConfig, matched: Matched) -> list[Cell]:
    """All cells, those that share a program beside each other."""
    found = []
    for (task, contestant), solved in matched.solved.items():
        plain = arena.config(task, contestant, solved)
        for rate in arena.learning_rates:
            for seed in arena.seeds:
                directory = f"{arena.dir}/{task}/{contestant}/lr_{rate:g}/seed_{seed}"
                optimizer = plain.optimizer.model_copy(update={"learning_rate": rate})
                train = plain.train.model_copy(update={"seed": seed})
                run = plain.run.model_copy(update={"dir": directory})
                changes = {"optimizer": optimizer, "train": train, "run": run}
                found.append(Cell(task, contestant, rate, seed, plain.model_copy(update=changes)))
    return found
