"""Every arena that is shipped can be read, and its contestants are configurations."""

from pathlib import Path

import pytest

from jaxformer.arena.config import load_arena

REPOSITORY = Path(__file__).parents[2]
FILES = sorted((REPOSITORY / "configs" / "arena").rglob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shipped_arena_is_whole(file):
    arena = load_arena(file, [])
    assert len(arena.seeds) >= 3
    assert f"jaxformer arena {file.relative_to(REPOSITORY)}" in file.read_text()
    for task in arena.tasks:
        for contestant in arena.contestants:
            config = arena.config(task, contestant, {})
            assert config.train.steps <= 1000
    assert arena.dir.endswith(file.stem)
