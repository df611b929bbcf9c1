"""Parameters by their paths: splitting and joining trees, and patterns over paths."""

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from jaxformer.errors import UserError, did_you_mean

PyTree = Any


def by_path(tree: PyTree) -> dict[str, Any]:
    """{"a": {"b": leaf}} → {"a/b": leaf}."""
    return flatten_dict(tree, sep="/")


def from_paths(leaves: dict[str, Any]) -> PyTree:
    """{"a/b": leaf} → {"a": {"b": leaf}}."""
    return unflatten_dict(leaves, sep="/")


def split(tree: PyTree, chosen: Collection[str]) -> tuple[PyTree, PyTree]:
    """The leaves of the chosen paths, and the others, each as a tree of its own."""
    leaves = by_path(tree)
    return (
        from_paths({path: leaf for path, leaf in leaves.items() if path in chosen}),
        from_paths({path: leaf for path, leaf in leaves.items() if path not in chosen}),
    )


def join(*parts: PyTree) -> PyTree:
    """Join trees into one; of two leaves with the same path, the later one stays."""
    leaves: dict[str, Any] = {}
    for part in parts:
        leaves |= by_path(part)
    return from_paths(leaves)


def matches(pattern: str, paths: Iterable[str]) -> set[str]:
    """The paths that the pattern matches, as with file names; `*` also matches `/`."""
    return {path for path in paths if fnmatchcase(path, pattern)}


def matching(patterns: Iterable[str], paths: Collection[str], key: str) -> set[str]:
    """The paths that some pattern matches.

    Args:
        key: where the patterns were given, for the message.

    Raises:
        UserError: a pattern matches none.
    """
    found: set[str] = set()
    for pattern in patterns:
        if not (matched := matches(pattern, paths)):
            raise unmatched(pattern, paths, key)
        found |= matched
    return found


def unmatched(pattern: str, paths: Collection[str], key: str) -> UserError:
    """The error for a pattern that matches no path; it names some paths, and the nearest."""
    some = ", ".join(sorted(paths)[:8])
    some += f" and {len(paths) - 8} more" if len(paths) > 8 else ""
    return UserError(
        f"{key}: '{pattern}' matches no parameter; there are {some}.{did_you_mean(pattern, paths)}"
    )
