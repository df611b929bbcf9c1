"""Puts the units of a store together: checks that all are there, and writes the index."""

from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.data.deduplicate import documents_to_keep, signatures_of, without_others
from jaxformer.data.documents import words_of
from jaxformer.data.making import making_folder
from jaxformer.data.manifest import (
    FORMAT,
    INDEX,
    Manifest,
    UnusableStoreError,
    faults_of,
    token_dtype,
)
from jaxformer.data.plans import Plan
from jaxformer.data.recipe import Recipe
from jaxformer.data.row_cache import RowCache
from jaxformer.data.shards import Shard, file_names
from jaxformer.data.signatures import Signer
from jaxformer.data.store import TokenStore, read_manifest
from jaxformer.data.unit_writer import EMPTY, ShardRecord, records_of
from jaxformer.errors import UserError
from jaxformer.storage import Place
from jaxformer.terminal import in_time, progress, say

RECORDS_AT_ONCE = 16
DUPLICATE = "duplicate"
REASONS = {
    "not_utf8": "that are not UTF-8 skipped",
    "missing": "that are null or missing skipped",
    "bad": "that are not rows of text skipped",
    "short": "shorter than data.min_chars left out",
    DUPLICATE: "that are duplicates left out",
    "long": "longer than data.max_chars left out",
}


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


def merge(plan: Plan, beside: Collection[str] = ()) -> Manifest:
    """Check that every unit is whole, and write the index; `beside` are the keys of other stores of
    the same configuration.

    Raises:
        UserError: units are missing, or the store holds nothing.
    """
    if (there := finished(plan)) is not None:
        return there
    recipe = plan.recipe
    found = records_by_unit(plan, range(len(plan.units)))
    missing = [number for number, records in found.items() if not is_end(records)]
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


def records_by_unit(plan: Plan, numbers: Sequence[int]) -> dict[int, list[ShardRecord]]:
    """The records of the whole shards of these units."""
    place = plan.recipe.place_of_units
    files = place.files()
    with ThreadPoolExecutor(RECORDS_AT_ONCE) as pool:
        found = pool.map(lambda number: records_of(place, plan.key, number, files), numbers)
        return dict(zip(numbers, found, strict=True))


def is_end(records: list[ShardRecord]) -> bool:
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
    with making_folder(recipe.place, plan.data) as folder, progress(title, len(keep)) as report:
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
        called = words_of(instructions)
        others = [f"{left_out[key]:,} {words}" for key, words in REASONS.items() if left_out[key]]
        raise UserError(
            f"data source '{recipe.source.name}' holds no {called.lacks}: "
            f"{', '.join([f'{left_out[EMPTY]:,} {called.are}', *others])}"
        )
    return Manifest(
        format=FORMAT,
        source=recipe.source.name,
        identity=recipe.source.identity,
        source_fingerprint=recipe.fingerprint,
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
    called = words_of(manifest.instructions)
    for reason, count in manifest.left_out.items():
        words = f"{called.empty} left out" if reason == EMPTY else REASONS.get(reason, reason)
        left_out += f", {count:,} {words}"
    if manifest.learnt_tokens is not None:
        learnt = f" ({manifest.learnt_tokens / manifest.tokens:.1%} in the loss)"
    if seconds is not None:
        took = f" in {in_time(seconds)}"
    say(
        f"token store of {manifest.source}: {manifest.documents:,} {called.all}{left_out}, "
        f"{manifest.tokens:,} tokens{learnt}{took} ({place})"
    )
