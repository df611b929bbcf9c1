"""What is measured once all cells have ended: speed, and what the best runs write and say."""

import base64
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.arena.cells import Cell
from jaxformer.arena.config import ArenaConfig
from jaxformer.arena.efficiency import Measured, efficiency
from jaxformer.arena.match import Matched
from jaxformer.arena.results import value_of
from jaxformer.config import Config
from jaxformer.data.stores import Stores
from jaxformer.evaluate.samples import samples_of
from jaxformer.paths import replace_text
from jaxformer.reading import read_json_object
from jaxformer.run import load

SAMPLE_TOKENS, SAMPLE_TEMPERATURE = 160, 0.8


@dataclass(frozen=True)
class Afterwards:
    """What `efficiency` measured; and of each contestant's run with the lowest validation loss, a
    sample for each text task, and what it says of a few pictures or recordings."""

    efficiency: list[Measured]
    samples: dict[str, dict[str, str]]  # by task
    seen: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by task, see `seen_by`

    @classmethod
    def of(cls, arena: ArenaConfig, matched: Matched, cells: Sequence[Cell]) -> "Afterwards":
        """Measure now, or read from the arena's directory if the same was measured before."""
        file = Path(arena.dir) / "afterwards.json"
        writers, readers = _best(cells, _continues), _best(cells, _answers)
        speed = arena.efficiency.model_dump(mode="json") if arena.efficiency else None
        asked = {"efficiency": speed, "samples_of": writers, "seen_by": readers}
        if file.exists():
            kept = read_json_object(file.read_bytes(), str(file))
            if kept.pop("asked", None) == asked:
                return cls(**kept)
        seen = {task: seen_by(directories) for task, directories in readers.items()}
        measured = cls(_efficiency(arena, matched), _samples(writers), seen)
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


def _continues(config: Config) -> bool:
    """Whether a run continues texts."""
    return config.data.task is None and config.instead is None


def _answers(config: Config) -> bool:
    """Whether a run names classes of pictures or recordings, or texts of recordings."""
    objective = config.train.objective
    return config.data.is_media and not (objective.of_numbers or objective.compares_rows)


def _best(cells: Sequence[Cell], is_asked: Callable[[Config], bool]) -> dict[str, dict[str, str]]:
    """The directory of the run with the lowest loss, by task and contestant, of those asked for."""
    best: dict[tuple[str, str], tuple[float, Cell]] = {}
    for cell in cells:
        if is_asked(cell.config):
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


def seen_by(directories: Mapping[str, str]) -> list[dict[str, Any]]:
    """A few validation rows of a task, each with its `picture` or spectrogram, a PNG in base64,
    what it `is`, and the `answers` of the contestants."""
    rows: list[dict[str, Any]] = []
    for contestant, directory in directories.items():
        run = load(directory)
        samples = samples_of(run, Stores(run.config.data, run.tokenizer).validation)
        rows = rows or [
            {"picture": _png(each.pixels), "is": each.true, "answers": {}} for each in samples
        ]
        for row, each in zip(rows, samples, strict=True):
            row["answers"][contestant] = each.answer
    return rows


def _png(pixels: np.ndarray) -> str:
    from PIL import Image  # which matplotlib needs, too

    picture, file = (
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels),
        io.BytesIO(),
    )
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
