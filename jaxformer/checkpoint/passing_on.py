"""Who gives what to whom, when processes restore a step from the copies on their local disks.

Every process makes the same plan from what all have said, so that nothing else need be agreed on.
Parts (see `shards`) go from one process to another through a folder that both see.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jaxformer.checkpoint import integrity
from jaxformer.checkpoint.integrity import DamagedError, read_manifest
from jaxformer.checkpoint.interop.safetensors import Place as Tensor
from jaxformer.checkpoint.interop.safetensors import read_header
from jaxformer.checkpoint.shards import Part, write_shards
from jaxformer.parallel import processes
from jaxformer.storage import Place
from jaxformer.terminal import say

SHARDS = "shards.safetensors"  # the file of a copy
PASSING = ".passing.safetensors"  # the end of a file's name, on its way

Plan = list[dict[str, "Copy"]]  # for each process, by part: the copy that it is taken from


class Copy(NamedTuple):
    """What the process `held_by` held at a step, as `kept_by`, perhaps another now, has it."""

    kept_by: int
    held_by: int


def intact_plan(
    kept: set[Copy], here: Mapping[int, Path], parts: Mapping[str, Part]
) -> Plan | None:
    """A plan (see `plan_of`) in which every process has found the copies that it gives intact; None
    if those are not enough. All processes call it together.

    Args:
        here: the copies that this process keeps, by who held them.
    """
    while (plan := plan_of(kept, parts)) is not None:
        damaged = [
            held_by
            for held_by, names in given(plan, processes.index()).items()
            if not _is_intact(here[held_by], {name: parts[name] for name in names})
        ]
        lost = {
            Copy(process, held_by)
            for process, each in enumerate(processes.gather(damaged))
            for held_by in each
        }
        if not lost:
            return plan
        kept = kept - lost
    return None


def plan_of(kept: set[Copy], parts: Mapping[str, Part]) -> Plan | None:
    """A plan by which every process takes each part that it needs from a copy that it keeps itself,
    or else from the first that has the part; None if a part is nowhere."""
    plan: Plan = [{} for _ in range(processes.count())]
    for name, part in parts.items():
        copies = sorted(copy for copy in kept if copy.held_by in part.held_by)
        if not copies:
            return None
        for process in part.held_by:
            plan[process][name] = min(copies, key=lambda copy: (copy.kept_by != process, copy))
    return plan


def given(plan: Plan, kept_by: int) -> dict[int, set[str]]:
    """The names of the parts that a process gives to itself and to others, by who held them."""
    found: dict[int, set[str]] = {}
    for sources in plan:
        for name, copy in sources.items():
            if copy.kept_by == kept_by:
                found.setdefault(copy.held_by, set()).add(name)
    return found


def _is_intact(folder: Path, parts: Mapping[str, Part]) -> bool:
    """Whether the files of a copy have their hashes, and these parts are in it."""
    if faults := integrity.wrong_hashes(folder, read_manifest(folder)["files"]):
        say(f"warning: {DamagedError(folder, faults)}; it is not used")
        return False
    tensors = read_header(folder / SHARDS)
    for name, part in parts.items():
        if name not in tensors or tensors[name].info != part.info:
            say(f"warning: {folder} has another {name} than this run; it is not used")
            return False
    return True


def pass_on(
    plan: Plan, tensors: Mapping[int, Mapping[str, Tensor]], own: Path, common: Place
) -> dict[str, Tensor] | None:
    """Give the others what the plan says of this process's copies, and take what it needs of
    theirs; None if a file did not arrive as it was sent. All processes call it together.

    Args:
        tensors: the parts in the copies that this process gives, by who held them.
        own: a folder of this process, where what it has taken stays.
        common: a folder that all processes see.
    """
    me = processes.index()
    sent: dict[str, str] = {}
    for receiver, sources in enumerate(plan):
        names = {name: copy.held_by for name, copy in sources.items() if copy.kept_by == me}
        if receiver != me and names:
            file = own / f"to_{receiver}{PASSING}"
            write_shards(file, {name: tensors[by][name].read() for name, by in names.items()})
            sent[str(receiver)] = _hash(file)
            (common / f"{me}_to_{receiver}").take(file)
    received: dict[str, Tensor] = {}
    arrived = True
    for sender, hashes in enumerate(processes.gather(sent)):
        if arrived and str(me) in hashes:
            file = own / f"from_{sender}{PASSING}"
            file.write_bytes((common / f"{sender}_to_{me}").read())
            arrived = _hash(file) == hashes[str(me)]
            received |= read_header(file) if arrived else {}
    return received if all(processes.gather(arrived)) else None


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
