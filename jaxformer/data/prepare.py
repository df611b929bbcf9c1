"""Makes token stores, unit by unit, on any number of cores and machines.

The units are a function of the source and of its plan's size alone, so whoever makes them, the
store is the same to the byte. Nothing that is whole is made twice: what was killed is run again.
"""

import os
import time
from collections.abc import Collection, Sequence

from jaxformer.data.making import locked, making_folder
from jaxformer.data.manifest import (
    INDEX,
    UnusableStoreError,
)
from jaxformer.data.merging import announce, is_end, merge, records_by_unit
from jaxformer.data.plans import Plan
from jaxformer.data.store import TokenStore, read_store
from jaxformer.data.unit_writer import changed
from jaxformer.data.workers import write_in_workers
from jaxformer.errors import UserError
from jaxformer.parallel import processes
from jaxformer.storage import Place
from jaxformer.terminal import in_bytes, progress, say

# A second process for less text would start when the first is done.
LEAST_PER_WORKER = 1 << 25
MANY_BYTES = 1 << 30  # of a source that is better prepared apart


def open_store(plan: Plan) -> TokenStore:
    """The store of a plan, made first if there is none that can be trusted.

    Raises:
        UserError: the source is wrong, empty or unreadable, or the folder cannot be written.
    """
    recipe, data = plan.recipe, plan.data
    try:
        return read_store(recipe, data)
    except UnusableStoreError:
        pass  # looked at again under the lock, where nobody else on this machine changes it
    with locked(recipe.place, data):
        started = time.monotonic()
        try:
            return read_store(recipe, data)
        except UnusableStoreError as reason:
            if (recipe.place / INDEX).exists():
                say(
                    f"token store of {recipe.source.name}: made again because {reason} "
                    f"({recipe.place})"
                )
                forget(recipe.place, reason.shards)
        _advise(plan)
        write_units(plan, range(len(plan.units)))
        announce(merge(plan), recipe.place, time.monotonic() - started)
        try:
            return read_store(recipe, data)
        except UnusableStoreError as reason:
            raise UserError(
                f"data source '{recipe.source.name}': its token store {recipe.place} was just "
                f"made, but {reason}; run again"
            ) from None


def _advise(plan: Plan) -> None:
    """Say what many processes, or much text, would better do before training."""
    size = plan.recipe.source.size if plan.source.source[:3] != "hf:" else 0
    private = processes.count() > 1 and not plan.recipe.place.is_remote
    if processes.is_first() and (size >= MANY_BYTES or private):
        why = f"{in_bytes(size)} of text are tokenised first"
        if private:
            why += ", by every host whose disk is its own"
        say(
            f"{plan.recipe.source.name}: {why}; to do it apart, once: jaxformer data prepare "
            f"CONFIG --out gs://BUCKET/FOLDER, and then train with data.store_dir set to that place"
        )


def forget(place: Place, shards: Collection[str]) -> None:
    """Let the store be finished anew, after these shards of it are made again."""
    for name in (INDEX, *(f"{shard}.json" for shard in shards)):
        (place / name).remove()


def write_units(plan: Plan, numbers: Sequence[int], cores: int | None = None) -> None:
    """Make what is missing of these units, on so many cores of this machine: all by default.

    Raises:
        UserError: a row is wrong, or the source changed meanwhile.
    """
    recipe, data = plan.recipe, plan.data
    source, units = recipe.source, plan.units
    found = records_by_unit(plan, numbers)
    missing = [number for number, records in found.items() if not is_end(records)]
    total = sum(units[number].size for number in missing)
    cores = cores or len(os.sched_getaffinity(0))
    workers = min(cores, len(missing), len(missing) * plan.shard_bytes // LEAST_PER_WORKER)
    with (
        making_folder(recipe.place, data) as folder,
        progress(f"tokenising {source.name}", total) as report,
    ):
        if workers > 1:
            write_in_workers(plan, missing, workers, cores, report)
        else:
            before = 0

            def count(done: int) -> None:
                report(before + done)

            for number in missing:
                plan.write(number, folder, count)
                before += units[number].size
    if source.fingerprint() != plan.recipe.fingerprint:
        raise changed(source)
