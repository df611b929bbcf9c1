"""What `jaxformer checkpoint ls`, `inspect`, `verify` and `rm` do; `diff` is in `difference`."""

import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import yaml

from jaxformer.checkpoint import health
from jaxformer.checkpoint.health import Step, look_at, names_step, newest_of, steps_of
from jaxformer.checkpoint.lock import check_no_writer
from jaxformer.checkpoint.manifest import Description
from jaxformer.checkpoint.run_directory import locate
from jaxformer.errors import UserError, did_you_mean
from jaxformer.paths import remove_tree

WIDEST = 60  # characters of a path in a table


def ls(path: Path, *, verify: bool) -> None:
    """Print a line per step: size, time, loss, whether it is the newest or the best, health."""
    _, steps = steps_of(path, hashes=verify)
    best = health.best_of(steps)
    good = [step for step in steps if step.is_good and step.is_named]
    newest = good[-1] if good else None
    width = max(len("step"), *(len(step.name) for step in steps))
    print(f"{'step':>{width}} {'bytes':>16}  {'saved':<20}  {'eval/loss':<9}  {'':<11}  health")
    for step in steps:
        saved = step.manifest["saved_at"] if step.manifest else "-"
        loss = "-" if step.loss is None else f"{step.loss:.4f}"
        marks = [word for word, one in (("newest", newest), ("best", best)) if one is step]
        fault = f": {step.faults[0]}" if step.faults else ""
        print(
            f"{step.name:>{width}} {step.bytes:>16,}  {saved:<20}  {loss:<9}  "
            f"{' '.join(marks):<11}  {step.health}{fault}"
        )
    if any(step.health == "unverified" for step in steps):
        print("unverified: every file has the right size; --verify compares the hashes")


def inspect(path: Path, *, as_json: bool) -> None:
    """Print the manifest as a page: size, state, data, versions, configuration, every array."""
    step = newest_of(path)
    manifest = step.manifest
    assert manifest is not None
    if as_json:
        print(json.dumps(manifest, indent=2))
        return
    loss = "not evaluated" if step.loss is None else f"{step.loss:.4f}"
    versions = manifest.get("versions", {})
    lines = {
        "checkpoint": str(step.folder),
        "saved": f"{manifest['saved_at']}, step {manifest['step']:,}, eval/loss {loss}",
        "size": f"{step.bytes:,} bytes in {len(manifest['files'])} files, format "
        f"{manifest['format']}, {step.health}",
        "state": json.dumps(manifest["state"]),
        "tokenizer": json.dumps(manifest.get("tokenizer")),
        "data": json.dumps(manifest.get("data")),
        "mesh": json.dumps(manifest.get("mesh")),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "revision": str(manifest.get("git_revision")),
    }
    for name, text in lines.items():
        print(f"{name:<11}{text}")
    print("\nconfiguration:")
    print(textwrap.indent(yaml.safe_dump(manifest.get("config"), sort_keys=False), "  "), end="")
    for name, tree in manifest["trees"].items():
        print(f"\n{name}: {_count(tree):,} numbers in {len(tree)} arrays")
        width = min(WIDEST, max(map(len, tree), default=0))
        for leaf, what in tree.items():
            shape = f"{what['dtype']}{what['shape']}"
            print(f"  {leaf:<{width}}  {shape:<28}  {math.prod(what['shape']):>14,}")


def verify(path: Path) -> bool:
    """Hash every file and print each fault; → whether there is none."""
    _, steps = steps_of(path, hashes=True)
    chosen = [step for step in steps if step.is_named or names_step(path)]
    for step in chosen:
        print(f"{step.folder}: {step.health}, {step.bytes:,} bytes")
        for fault in step.faults:
            print(f"  {fault.file}\n    expected {fault.expected}\n    found    {fault.found}")
    return all(step.health == "complete" for step in chosen)


def rm(run: Path, names: Sequence[str], *, force: bool) -> None:
    """Remove steps, by their names in `checkpoints/`.

    Raises:
        UserError: a step does not exist; or, without `force`, a writer lives, or no good step
            would be left.
    """
    directory, _ = locate(run)
    _, steps = steps_of(directory.path)
    there = {step.name: step for step in steps}
    for name in names:
        if name not in there:
            hint = did_you_mean(name, there)
            raise UserError(
                f"{directory.checkpoints} has no step '{name}'; it has {', '.join(there)}.{hint}"
            )
    if not force:
        check_no_writer(directory.path)
        _check_one_stays(steps, names)
    for name in dict.fromkeys(names):
        folder = there[name].folder
        remove_tree(folder)
        print(f"removed {folder}")


def _check_one_stays(steps: list[Step], names: Sequence[str]) -> None:
    good = [step for step in steps if step.is_good and step.is_named]
    lost = [step for step in good if step.name in names]
    rest = [step for step in good if step.name not in names]
    stays = (look_at(step.folder, hashes=True).is_good for step in reversed(rest))
    if lost and not any(stays):
        raise UserError(
            f"{lost[-1].folder} is the last good checkpoint of its run, which could not "
            f"resume without it; --force removes it anyway"
        )


def _count(tree: Description) -> int:
    return sum(math.prod(leaf["shape"]) for leaf in tree.values())
