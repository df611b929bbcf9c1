"""The page of findings: what was published, what is seen here, and whether they agree."""

from collections.abc import Sequence
from pathlib import Path

from jaxformer.arena.cells import cells
from jaxformer.arena.config import ArenaConfig
from jaxformer.arena.match import Matched
from jaxformer.arena.results import entries
from jaxformer.arena.verdict import reproduction
from jaxformer.reading import read_json_object

HEAD = """# Findings

Published results, tested at a size that two CPU cores train in minutes. A finding is reproduced if
all its inequalities hold, with intervals over seeds that do not overlap. Each is an arena of its
own; `jaxformer arena configs/arena/findings --all --out docs/findings.md` runs all of them and
writes this page.
"""


def findings_page(arenas: Sequence[tuple[Path, ArenaConfig]]) -> str:
    """The page about arenas that have ended; those without a finding are left out."""
    parts = [HEAD]
    for file, arena in arenas:
        if arena.finding is None:
            continue
        matched = Path(arena.dir) / "arena.json"
        kept = read_json_object(matched.read_bytes(), str(matched))
        found = entries(arena, cells(arena, Matched.from_json(kept["matched"])))
        word, lines = reproduction(arena.finding, found)
        parts.append(
            f"## {file.stem.replace('_', ' ')}\n\n"
            f"{arena.finding.claim}\n\nPublished: {arena.finding.published} "
            f"({arena.finding.source}).\n\n**{word}** (`{file}`, {len(arena.seeds)} seeds):\n\n"
            + "\n".join(f"- {line}" for line in lines)
            + "\n"
            + (f"\nImprove or replace: {advice}\n" if (advice := arena.finding.advice) else "")
        )
    return "\n".join(parts)
