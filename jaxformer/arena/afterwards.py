"""What is measured once all cells have ended: speed, and what the best runs write."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jaxformer.arena.cells import Cell
from jaxformer.arena.config import ArenaConfig
from jaxformer.arena.efficiency import Measured, efficiency
from jaxformer.arena.match import Matched
from jaxformer.arena.results import value_of
from jaxformer.paths import replace_text
from jaxformer.reading import read_json_object
from jaxformer.run import load

SAMPLE_TOKENS, SAMPLE_TEMPERATURE = 160, 0.8


@dataclass(frozen=True)
class Afterwards:
    """What `efficiency` measured, and for each text task, a sample of each contestant's run with
    the lowest validation loss."""

    efficiency: list[Measured]
    samples: dict[str, dict[str, str]]  # by task

    @classmethod
    def of(cls, arena: ArenaConfig, matched: Matched, cells: Sequence[Cell]) -> "Afterwards":
        """Measure now, or read from the arena's directory if the same was measured before."""
        file = Path(arena.dir) / "afterwards.json"
        best = _best_of_text(cells)
        speed = arena.efficiency.model_dump(mode="json") if arena.efficiency else None
        asked = {"efficiency": speed, "samples_of": best}
        if file.exists():
            kept = read_json_object(file.read_bytes(), str(file))
            if kept.pop("asked", None) == asked:
                return cls(**kept)
        measured = cls(_efficiency(arena, matched), _samples(best))
        replace_text(file, json.dumps({"asked": asked, **asdict(measured)}, indent=1) + "\n")
        return measured


def _efficiency(arena: ArenaConfig, matched: Matched) -> list[Measured]:
    if arena.efficiency is None:
        return []
    task = arena.efficiency.task
    configs = {
        name: arena.config(task, name, matched.solved[task, name]) for name in arena.contestants
    }
    return efficiency(configs, arena.efficiency.lengths, arena.efficiency.contexts)


def _best_of_text(cells: Sequence[Cell]) -> dict[str, dict[str, str]]:
    """The directory of the run with the lowest loss, by task and contestant, of those that can
    continue a text."""
    best: dict[tuple[str, str], tuple[float, Cell]] = {}
    for cell in cells:
        if cell.config.data.task is None and cell.config.instead is None:
            loss = value_of(cell.result() or {"tests": []}, "loss", 1)
            key = cell.task, cell.contestant
            if math.isfinite(loss) and loss < best.get(key, (math.inf, cell))[0]:
                best[key] = loss, cell
    directories: dict[str, dict[str, str]] = {}
    for (task, contestant), (_, cell) in best.items():
        directories.setdefault(task, {})[contestant] = str(cell.directory)
    return directories


def _samples(directories: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    return {
        task: {
            contestant: str(
                load(directory).generate(
                    "", max_new_tokens=SAMPLE_TOKENS, temperature=SAMPLE_TEMPERATURE
                )
            )
            for contestant, directory in own.items()
        }
        for task, own in directories.items()
    }
