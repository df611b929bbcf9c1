"""What is measured once all cells have ended: speed, and what the best runs write."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jaxformer.arena.cells import Cell
from jaxformer.arena.config import ArenaConfig
from jaxformer.arena.efficiency import Measured, efficiency
from jaxformer.arena.match import Matched
from jaxformer.arena.results import value_of
from jaxformer.paths import replace_text
from jaxformer.run import load

SAMPLE_TOKENS, SAMPLE_TEMPERATURE = 160, 0.8


@dataclass(frozen=True)
class Afterwards:
    """`efficiency`, as the function of that name gives it; `samples`, text by contestant, each of
    the run with the lowest validation loss on a task of text."""

    efficiency: list[Measured]
    samples: dict[str, dict[str, str]]  # by task

    @classmethod
    def of(cls, arena: ArenaConfig, matched: Matched, cells: Sequence[Cell]) -> "Afterwards":
        """Measured now, or read from the arena's directory where it was measured before."""
        file = Path(arena.dir) / "afterwards.json"
        if file.exists():
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        measured = cls(_efficiency(arena, matched), _samples(cells))
        replace_text(file, json.dumps(asdict(measured), indent=1) + "\n")
        return measured


def _efficiency(arena: ArenaConfig, matched: Matched) -> list[Measured]:
    if arena.efficiency is None:
        return []
    task = arena.efficiency.task
    configs = {
        name: arena.config(task, name, matched.solved[task, name]) for name in arena.contestants
    }
    return efficiency(configs, arena.efficiency.lengths, arena.efficiency.contexts)


def _samples(cells: Sequence[Cell]) -> dict[str, dict[str, str]]:
    best: dict[tuple[str, str], tuple[float, Cell]] = {}
    for cell in cells:
        if cell.config.data.task is None:
            loss = value_of(cell.result() or {"tests": []}, "loss", 1)
            key = cell.task, cell.contestant
            if math.isfinite(loss) and loss < best.get(key, (math.inf, cell))[0]:
                best[key] = loss, cell
    texts: dict[str, dict[str, str]] = {}
    for (task, contestant), (_, cell) in best.items():
        text = load(cell.directory).generate(
            "", max_new_tokens=SAMPLE_TOKENS, temperature=SAMPLE_TEMPERATURE
        )
        texts.setdefault(task, {})[contestant] = str(text)
    return texts
