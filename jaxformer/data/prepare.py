"""Makes token stores, unit by unit, on any number of cores and machines.

The units are a function of the source and of its plan's size alone, so whoever makes them, the
store is the same to the byte. Nothing that is whole is made twice: what was killed is run again.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from jaxformer.config import DataConfig, SourceConfig
from jaxformer.data.deduplicate import documents_to_keep, signatures_of, without_others
from jaxformer.data.documents import Lengths, format_of
from jaxformer.data.row_cache import RowCache
from jaxformer.data.shards import Shard, file_names
from jaxformer.data.signatures import Signer
from jaxformer.data.sources import Source, open_source
from jaxformer.data.store import (
    FORMAT,
    INDEX,
    Manifest,
    Recipe,
    Reference,
    TokenStore,
    UnusableStoreError,
    faults_of,
    read_manifest,
    read_store,
    stores_folder,
    token_dtype,
)
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.unit_writer import EMPTY, ShardRecord, changed, records_of, write_unit
from jaxformer.data.units import Unit
from jaxformer.data.workers import write_in_workers
from jaxformer.errors import RunFailed, UserError
from jaxformer.parallel import processes
from jaxformer.paths import local_path
from jaxformer.storage import Place
from jaxformer.terminal import in_bytes, in_time, progress, say

SHARD_BYTES = 1 << 28
# A second process for less text would start when the first is done.
LEAST_PER_WORKER = 1 << 25
MANY_BYTES = 1 << 30  # of a source that is better prepared apart
RECORDS_AT_ONCE = 16
SAID_AFTER_SECONDS = 2.0
MAKING = "making"  # folders of shards that are not finished
LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
DUPLICATE = "duplicate"
REASONS = {
    "not_utf8": "that are not UTF-8 skipped",
    "missing": "that are null or missing skipped",
    "bad": "that are not rows of text skipped",
    "short": "shorter than data.min_chars left out",
    DUPLICATE: "that are duplicates left out",
    "long": "longer than data.max_chars left out",
}


@dataclass(frozen=True)
class Plan:
    """How a store is made: its recipe, and the units of its source."""

    recipe: Recipe
    source: SourceConfig
    data: DataConfig
    shard_bytes: int

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        return self.recipe.source.units(self.shard_bytes)

    @cached_property
    def key(self) -> str:
        """Shards with another one were cut in other places."""
        sizes = [self.recipe.key, self.shard_bytes, [unit.size for unit in self.units]]
        return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:32]

    def write(self, number: int, folder: Path, report: Callable[[int], None]) -> None:
        """Make what is missing of one unit; see `write_unit`."""
        unit = self.units[number]
        write_unit(self.recipe, self.key, self.shard_bytes, number, unit, folder, report)


def plan_of(
    source: SourceConfig, data: DataConfig, tokenizer: Tokenizer, shard_bytes: int = SHARD_BYTES
) -> Plan:
    """The plan of a source, whose format and column are given.

    Raises:
        UserError: the source is wrong, or the tokenizer has no chat template for its messages.
    """
    opened = source_named(source.source, data)
    form = format_of(source, tokenizer)
    lengths = Lengths(data.min_chars, data.max_chars)
    recipe = Recipe(opened, tokenizer, form, lengths, data.row_options, stores_folder(data))
    if data.deduplicate is not None and _unweighted(source) != data.held_out:
        recipe = replace(recipe, deduplicate=data.deduplicate)
        if data.reference is not None:
            reference = source_named(data.reference.source, data)
            form = format_of(data.reference, tokenizer)
            recipe = replace(recipe, reference=Reference(reference, form))
    return Plan(recipe, source, data.model_copy(update={"tokenizer": tokenizer.name}), shard_bytes)


def _unweighted(source: SourceConfig) -> SourceConfig:
    return source.model_copy(update={"weight": 1.0})


def source_named(name: str, data: DataConfig) -> Source:
    """The source `name`, with the policies of `data`."""
    return open_source(name, data.invalid_utf8, data.missing_text, data.bad_rows)


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
    with _locked(recipe.place, data):
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


def finished(plan: Plan) -> Manifest | None:
    """What the store of a plan holds, if it is there and whole; units that are left are removed."""
    recipe = plan.recipe
    try:
        manifest = read_manifest(recipe)
    except UnusableStoreError:
        return None
    if any(faults_of(recipe.place, manifest.shards, hashed=True)):
        return None
    if recipe.deduplicate is not None:
        _remove_units(recipe)
    return manifest


def _remove_units(recipe: Recipe) -> None:
    for name in recipe.place_of_units.files():
        (recipe.place_of_units / name).remove()


@contextmanager
def making_folder(plan: Plan) -> Iterator[Path]:
    """A folder of this process for shards that are not finished, on the disk of a store that is on
    a disk; what dead processes of this machine have left there is removed.

    Raises:
        UserError: it cannot be written.
    """
    place, data = plan.recipe.place, plan.data
    key, beside = "data.store_dir", place.path if not place.is_remote else None
    if beside is None or data.store_dir is None:
        key, beside = "data.cache_dir", beside or local_path(data.cache_dir).absolute()
    try:
        beside.mkdir(parents=True, exist_ok=True)
        for left in beside.glob(f"{MAKING}-*"):
            with _alone(left / LOCK) as is_dead:
                if is_dead:
                    shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{MAKING}-", dir=beside))
    except OSError as error:
        raise _unwritable(key, beside, error) from None
    try:
        with _alone(folder / LOCK):
            yield folder
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise RunFailed(
            f"{key} {beside} cannot be written: {error.strerror}. Make room, and run the same "
            f"command again: what is done is kept"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(file: Path) -> Iterator[bool]:
    """Hold the lock of a file; yields whether no living process holds it."""
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    except OSError:  # its folder has been removed meanwhile
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def _locked(place: Place, data: DataConfig) -> Iterator[None]:
    """Keep other processes of this machine from making the same store; a store in a bucket may be
    made by several at once, since they write the same bytes."""
    folder = local_path(data.cache_dir).absolute()
    file = folder / f"{place.name.rpartition('/')[2]}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise _unwritable("data.cache_dir", folder, error) from None
    lock = FileLock(file)
    try:
        lock.acquire(timeout=SAID_AFTER_SECONDS)
    except Timeout:
        say(f"waiting for another process that makes this token store ({file})")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _unwritable(key: str, folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{key} '{folder}' cannot be written: {error.strerror}; name a folder that can"
    )


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
    source, units = plan.recipe.source, plan.units
    missing = [number for number, records in _records(plan, numbers).items() if not _end(records)]
    total = sum(units[number].size for number in missing)
    cores = cores or len(os.sched_getaffinity(0))
    workers = min(cores, len(missing), len(missing) * plan.shard_bytes // LEAST_PER_WORKER)
    with making_folder(plan) as folder, progress(f"tokenising {source.name}", total) as report:
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


def merge(plan: Plan, beside: Collection[str] = ()) -> Manifest:
    """Check that every unit is whole, and write the index; `beside` are the keys of other stores of
    the same configuration.

    Raises:
        UserError: units are missing, or the store holds nothing.
    """
    if (there := finished(plan)) is not None:
        return there
    recipe = plan.recipe
    found = _records(plan, range(len(plan.units)))
    missing = [number for number, records in found.items() if not _end(records)]
    if missing:
        raise UserError(_what_is_missing(plan, missing, beside))
    manifest = _manifest(plan, [record for records in found.values() for record in records])
    if recipe.deduplicate is not None:
        manifest = _without_duplicates(plan, manifest)
    text = manifest.model_dump_json(indent=2, exclude_none=True)
    (recipe.place / INDEX).write(text.encode() + b"\n")
    if recipe.deduplicate is not None:
        _remove_units(recipe)
    return manifest


def _records(plan: Plan, numbers: Sequence[int]) -> dict[int, list[ShardRecord]]:
    """The records of the whole shards of these units."""
    place = plan.recipe.place_of_units
    files = place.files()
    with ThreadPoolExecutor(RECORDS_AT_ONCE) as pool:
        found = pool.map(lambda number: records_of(place, plan.key, number, files), numbers)
        return dict(zip(numbers, found, strict=True))


def _end(records: list[ShardRecord]) -> bool:
    return bool(records) and records[-1].ends


def _without_duplicates(plan: Plan, manifest: Manifest) -> Manifest:
    """Write the shards of the units again without duplicates; → what the store holds then."""
    recipe, place = plan.recipe, plan.recipe.place
    assert recipe.deduplicate is not None
    signer = Signer(recipe.deduplicate)
    known = np.zeros((0, signer.numbers), np.uint64)
    if recipe.reference is not None:
        known = signatures_of(*recipe.reference, recipe.lengths, signer)
    keep = documents_to_keep(recipe.place_of_units, manifest.shards, known)
    whole = TokenStore(recipe.place_of_units, manifest, RowCache(Path(), 0))
    shards: list[Shard] = []
    first = 0
    title = f"leaving duplicates out of {recipe.source.name}"
    with making_folder(plan) as folder, progress(title, len(keep)) as report:
        for number, shard in enumerate(manifest.shards):
            kept = keep[first : first + shard.documents]
            first += shard.documents
            if kept.any():
                written = without_others(whole, number, kept, folder)
                for name, _ in file_names(written):
                    (place / name).take(folder / name)
                shards.append(written)
            report(first)
    duplicates = int(np.count_nonzero(~keep))
    if not shards:
        raise UserError(
            f"data source '{recipe.source.name}': all {duplicates:,} documents are in "
            f"data.deduplicate.against, too; train on other text"
        )
    left_out = manifest.left_out | ({DUPLICATE: duplicates} if duplicates else {})
    return manifest.model_copy(update={"left_out": left_out, **_sums(shards)})


def _sums(shards: Sequence[Shard]) -> dict[str, Any]:
    """What a manifest says of its shards."""
    learnt = [shard.learnt_tokens for shard in shards if shard.learnt_tokens is not None]
    return {
        "documents": sum(shard.documents for shard in shards),
        "tokens": sum(shard.tokens for shard in shards),
        "text_bytes": sum(shard.text_bytes for shard in shards),
        "learnt_tokens": sum(learnt) if learnt else None,
        "shards": tuple(shards),
    }


def _manifest(plan: Plan, records: list[ShardRecord]) -> Manifest:
    recipe = plan.recipe
    tokenizer, instructions = recipe.tokenizer, recipe.format.instructions
    shards = [record.shard for record in records if record.shard.tokens]
    left_out = sum((Counter(record.left_out) for record in records), Counter())
    if not shards:
        kind = "rows have none" if instructions else "documents are empty"
        others = [f"{left_out[key]:,} {words}" for key, words in REASONS.items() if left_out[key]]
        raise UserError(
            f"data source '{recipe.source.name}' holds no "
            f"{'answer to learn' if instructions else 'text'}: "
            f"{', '.join([f'{left_out[EMPTY]:,} {kind}', *others])}"
        )
    return Manifest(
        format=FORMAT,
        source=recipe.source.name,
        identity=recipe.source.identity,
        source_fingerprint=recipe.source.fingerprint(),
        column=recipe.column,
        options=recipe.made_with,
        tokenizer=tokenizer.name,
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        dtype=token_dtype(tokenizer.vocab_size).name,
        left_out=dict(sorted(left_out.items())),
        largest_id=max(record.largest_id for record in records),
        instructions=instructions,
        **_sums(shards),
    )


def _what_is_missing(plan: Plan, missing: list[int], beside: Collection[str]) -> str:
    recipe, total = plan.recipe, len(plan.units)
    shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    text = (
        f"token store {recipe.place} of {recipe.source.name}: {len(missing)} of {total} units are "
        f"not there ({shown}); run the parts that have not ended, as they were begun"
    )
    names = {name.split("/")[0] for name in recipe.folder.files() if name.count("/") == 1}
    others = sorted(names - {recipe.key, *beside})
    if others:
        text += (
            f". {recipe.folder} also holds {', '.join(others[:4])}, of another source, another "
            f"tokenizer or other options: a part that ran with these, or where the source's files "
            f"differ, has gone there"
        )
    return text


def announce(manifest: Manifest, place: Place, seconds: float | None = None) -> None:
    """Say what a store holds."""
    left_out = learnt = took = ""
    for reason, count in manifest.left_out.items():
        kind = "without an answer" if manifest.instructions else "empty ones"
        words = f"{kind} left out" if reason == EMPTY else REASONS.get(reason, reason)
        left_out += f", {count:,} {words}"
    if manifest.learnt_tokens is not None:
        learnt = f" ({manifest.learnt_tokens / manifest.tokens:.1%} in the loss)"
    if seconds is not None:
        took = f" in {in_time(seconds)}"
    say(
        f"token store of {manifest.source}: {manifest.documents:,} documents{left_out}, "
        f"{manifest.tokens:,} tokens{learnt}{took} ({place})"
    )
