"""What `jaxformer checkpoint diff` does: two checkpoints, compared to the last bit."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxformer.checkpoint import integrity
from jaxformer.checkpoint.health import Step, newest_of
from jaxformer.checkpoint.integrity import DamagedError, Json
from jaxformer.checkpoint.manifest import Description
from jaxformer.checkpoint.run_directory import flat
from jaxformer.parallel.mesh import find_devices
from jaxformer.parallel.rules import path_name
from jaxformer.paths import is_remote
from jaxformer.terminal import progress

PIECE = 1 << 22  # numbers compared at once


def diff(one: Path, other: Path) -> None:
    """Print what differs: configuration, trees, and every array's values.

    One array is read at a time.

    Raises:
        UserError: one of them is no checkpoint, or damaged.
    """
    steps = [newest_of(path) for path in (one, other)]
    manifests = [_verified(step) for step in steps]
    print(f"A {steps[0].folder}\nB {steps[1].folder}")
    a, b = (flat(manifest.get("config", {})) for manifest in manifests)
    changed = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
    print(f"\nconfiguration: {len(changed)} keys differ")
    for key in changed:
        print(f"  {key}: {_shown(a, key)} in A, {_shown(b, key)} in B")
    trees = [manifest["trees"] for manifest in manifests]
    for name in dict.fromkeys([*trees[0], *trees[1]]):
        if name in trees[0] and name in trees[1]:
            _diff_tree(name, [step.folder for step in steps], [tree[name] for tree in trees])
        else:
            print(f"\n{name}: only in {'A' if name in trees[0] else 'B'}")


def _verified(step: Step) -> Json:
    assert step.manifest is not None
    if faults := integrity.wrong_hashes(step.folder, step.manifest["files"]):
        raise DamagedError(step.folder, faults)
    return step.manifest


def _diff_tree(name: str, folders: list[Path], described: list[Description]) -> None:
    a, b = described
    lines, equal, same = [], 0, [path for path in a if a[path] == b.get(path)]
    readers = [_reader(folder / name) for folder in folders]
    with progress(f"comparing {name}", len(same)) as report:
        for done, path in enumerate(same):
            report(done)
            is_equal, distance = compare(*(read(path) for read in readers))
            equal += is_equal
            if not is_equal:
                lines.append(f"  {path}: values differ by up to {distance:.6g}")
    for path in dict.fromkeys([*a, *b]):
        if path not in a or path not in b:
            lines.append(f"  {path}: only in {'A' if path in a else 'B'}")
        elif a[path] != b[path]:
            both = [f"{leaf['dtype']}{leaf['shape']}" for leaf in (a[path], b[path])]
            lines.append(f"  {path}: {both[0]} in A, {both[1]} in B")
    print(f"\n{name}: {equal} of {len(dict.fromkeys([*a, *b]))} arrays are bitwise equal")
    print("\n".join(lines), end="\n" if lines else "")


def compare(a: np.ndarray, b: np.ndarray) -> tuple[bool, float]:
    """Whether two arrays of one shape and dtype have the same bits, and max |a − b|."""
    a, b = np.ascontiguousarray(a).reshape(-1), np.ascontiguousarray(b).reshape(-1)
    equal, distance = True, 0.0
    for start in range(0, a.size, PIECE):
        x, y = a[start : start + PIECE], b[start : start + PIECE]
        if x.tobytes() != y.tobytes():
            equal = False
            apart = float(np.max(np.abs(x.astype(np.float64) - y.astype(np.float64))))
            distance = max(distance, apart) if not math.isnan(apart) else math.nan
    return equal, distance


def _reader(folder: Path) -> Callable[[str], np.ndarray]:
    """A function that reads one array of a saved tree, by its path; the others stay on the disk."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of a missing file that no item has
    find_devices()  # Orbax asks for them
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    folder = folder if is_remote(folder) else folder.absolute()  # Orbax finds no relative one
    tree = checkpointer.metadata(folder).item_metadata.tree
    leaves, structure = jax.tree.flatten(tree)
    names = [path_name(path) for path, _ in jax.tree.flatten_with_path(tree)[0]]
    on_host = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), tree)

    def read(path: str) -> np.ndarray:
        place = names.index(path)
        wanted: list[Any] = [ocp.PLACEHOLDER] * len(leaves)
        wanted[place] = leaves[place]
        one = jax.tree.unflatten(structure, wanted)
        arguments = ocp.args.PyTreeRestore(one, restore_args=on_host)
        return jax.tree.leaves(checkpointer.restore(folder, args=arguments))[place]

    return read


def _shown(config: Json, key: str) -> str:
    return json.dumps(config[key]) if key in config else "not set"
