"""What a checkpoint says of itself, and the comparison made before anything is restored."""

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from jaxformer.errors import UserError, did_you_mean
from jaxformer.parallel.rules import path_name

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

PyTree = Any
Description = dict[str, dict[str, Any]]  # path → {"shape": [...], "dtype": "float32"}


def describe(tree: PyTree) -> Description:
    """Shape and dtype of every leaf, by its path."""
    return {
        path_name(path): {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for path, leaf in jax.tree.flatten_with_path(tree)[0]
    }


def differences(saved: Description, wanted: Description) -> list[str]:
    """One line for every leaf that is missing, extra, or of another shape or dtype."""
    lines = []
    for path, leaf in wanted.items():
        if path not in saved:
            lines.append(f"missing  {path} {_leaf(leaf)}: not in the checkpoint")
        elif saved[path] != leaf:
            part = "shape" if saved[path]["shape"] != leaf["shape"] else "dtype"
            wide = saved[path]["dtype"] == "float64"
            cause = "; an earlier version made it under JAX_ENABLE_X64=1" if wide else ""
            found, expected = _leaf(saved[path]), _leaf(leaf)
            lines.append(f"{part:<8} {path}: {found} in the checkpoint, {expected} wanted{cause}")
    for path, leaf in saved.items():
        if path not in wanted:
            hint = did_you_mean(path, [each for each in wanted if each not in saved])
            lines.append(f"extra    {path} {_leaf(leaf)}: only in the checkpoint.{hint}")
    return lines


def check_same_tree(
    item: str, where: Path, saved: Description, wanted: PyTree, mend: str | None = None
) -> None:
    """Refuse to restore into a tree other than the saved one.

    Args:
        mend: how to fix it; by default, to give the run's own configuration.

    Raises:
        UserError: the trees differ; with a line for every path.
    """
    lines = differences(saved, describe(wanted))
    if lines:
        shown = lines[:20] + ([f"and {len(lines) - 20} more"] if len(lines) > 20 else [])
        own = f"give the configuration it was trained with ({where.parent.parent}/config.yaml)"
        raise UserError(
            f"{where} does not fit: its {item} differ in {len(lines)} places from those of the "
            f"configuration; {mend or own}\n  " + "\n  ".join(shown)
        )


def _leaf(leaf: Mapping[str, Any]) -> str:
    return f"{leaf['dtype']}{leaf['shape']}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def source_hash() -> str:
    """SHA-256 of this package's source as it is, committed or not."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        text = file.read_bytes()
        digest.update(f"{file.relative_to(package).as_posix()} {len(text)}\n".encode() + text)
    return digest.hexdigest()


def git_revision() -> str | None:
    """The revision of this source tree; None if the package is installed or git is missing."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout.strip() or None
