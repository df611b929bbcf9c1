"""An arena whose cells have made-up results: attention at 1.50 nats, retention lower or higher."""

from pathlib import Path

import numpy as np
from arena.test_match import make_arena

from jaxformer.arena.afterwards import Afterwards
from jaxformer.arena.cells import Cell, cells
from jaxformer.arena.config import ArenaConfig
from jaxformer.arena.match import Matched, match
from jaxformer.arena.run import ended

SPEED = [
    {"contestant": name, "length": length, "train_tokens_per_second": 1e4 / length}
    for name in ("attention", "retention", "window")
    for length in (16, 64)
]


def made_up(
    folder: Path, gap: float, noise: float = 0.01, **options
) -> tuple[ArenaConfig, Matched, list[Cell]]:
    """Every cell ended; retention is better by `gap` at the better of two learning rates, and one
    seed of `window` diverged."""
    usual = {
        "tasks": {"parity": {"lengths": [1, 4]}},
        "learning_rates": [1e-3, 1e-2],
        "seeds": [0, 1, 2, 3],
        "dir": str(folder / "arena"),
    }
    arena = make_arena(**(usual | options))
    matched = match(arena, lambda config: 1.0)
    every = cells(arena, matched)
    random = np.random.default_rng(0)
    for cell in every:
        if cell.contestant == "window" and cell.seed == 3:
            cell.write_result({"failed": "diverged", "tests": []})
            continue
        loss = 1.5 - gap * (cell.contestant == "retention") + 0.2 * (cell.learning_rate > 5e-3)
        loss += random.normal(0, noise)
        tests = [
            {
                "multiple": test.multiple,
                "level": test.level,
                "length": test.data.sequence_length,
                "loss": loss * test.multiple,
                "bits_per_byte": loss,
                "accuracy": 1 - loss / (4 if test.level is None else test.level),
                "row_accuracy": 0.0,
                "by_position": [loss] * 16,
            }
            for test in cell.held_out
        ]
        curve = [[step, step * 512, loss + 1 / step] for step in (1, 10, 100)]
        load = [[*row[:2], 2 / row[0]] for row in curve] if cell.contestant == "window" else []
        speed = {"step_seconds": 0.1, "tokens_per_second": 5e3, "seconds": 11}
        cell.write_result(ended(tests, curve, load, **speed))
    return arena, matched, every


def afterwards() -> Afterwards:
    return Afterwards(SPEED, {"parity": {"attention": "0 1 </pre> 1"}})
