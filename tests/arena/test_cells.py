"""Cells of one task and seed see the same batches, whoever trains."""

import hashlib

from arena.test_match import make_arena

from jaxformer.arena.cells import Cell, cells
from jaxformer.arena.match import match
from jaxformer.data.loader import train_batches
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer

STEPS = 5


def hashes(cell: Cell) -> tuple[str, ...]:
    """One a step, of all arrays of its batch."""
    data, train = cell.config.data, cell.config.train
    tokenizer = load_tokenizer(data.tokenizer)
    batches = train_batches(Stores(data, tokenizer), batch_size=train.batch_size, seed=train.seed)
    return tuple(
        hashlib.sha256(b"".join(array.tobytes() for array in batches[step])).hexdigest()
        for step in range(STEPS)
    )


def test_contestants_and_rates_share_their_batches_and_seeds_do_not(tmp_path):
    arena = make_arena(seeds=[0, 1], learning_rates=[1e-3, 1e-2], dir=str(tmp_path))
    every = cells(arena, match(arena, lambda config: 1.0))
    assert len({cell.directory for cell in every}) == len(every) == 3 * 2 * 2
    seen = {seed: {hashes(cell) for cell in every if cell.seed == seed} for seed in (0, 1)}
    assert len(seen[0]) == len(seen[1]) == 1
    assert seen[0] != seen[1]
    assert len(set(seen[0].pop())) == STEPS
