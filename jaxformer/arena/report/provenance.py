"""What is needed to repeat an arena: commands, configurations and versions."""

import hashlib
import json
import os
import platform
from collections.abc import Sequence

from jaxformer.arena.cells import Cell
from jaxformer.checkpoint.manifest import git_revision, versions


def provenance(cells: Sequence[Cell], command: str) -> str:
    """The arena's command, what it ran on, and every cell's own command and configuration hash."""
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [
        command,
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores; {packages}; "
        f"revision {git_revision() or 'unknown'}",
        "",
        *(f"{_hash(cell)}  jaxformer train {cell.directory}/config.yaml" for cell in cells),
    ]
    return "\n".join(lines)


def _hash(cell: Cell) -> str:
    text = json.dumps(cell.config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
