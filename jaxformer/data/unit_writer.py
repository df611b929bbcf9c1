"""Writes the shards of one unit of a source: a function of the unit and the recipe alone.

A shard ends with the first document that fills it. It gets its record last, which says how many
rows of the unit are done: a unit whose making was killed goes on with the next shard.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import NonNegativeInt, ValidationError

from jaxformer.data.documents import Document, read_documents
from jaxformer.data.manifest import fault_of, token_dtype
from jaxformer.data.recipe import Recipe
from jaxformer.data.shards import Shard, ShardWriter, file_names
from jaxformer.data.signatures import Signer
from jaxformer.data.sources import Source
from jaxformer.data.units import Unit
from jaxformer.errors import UserError
from jaxformer.schema.base import Schema
from jaxformer.storage import Place, Stored

# Texts handed to the tokenizer at once: enough for all cores, little memory.
CHARACTERS_AT_ONCE = 4_000_000
DOCUMENTS_AT_ONCE = 4096
EMPTY = "empty"  # why a document is left out, where no policy says so


class ShardRecord(Schema):
    """`NAME.json`: a shard, what was left out on its way, and how far its unit is with it."""

    largest_integer = 2**63 - 1

    plan: str
    rows: NonNegativeInt
    ends: bool  # the unit has no further shard
    largest_id: NonNegativeInt
    left_out: dict[str, NonNegativeInt]
    shard: Shard


def shard_name(unit: int, number: int) -> str:
    return f"{unit:05}-{number:03}"


def records_of(
    place: Place, plan: str, unit: int, files: dict[str, Stored] | None = None
) -> list[ShardRecord]:
    """The records of the unit's whole shards, up to the first that is missing or damaged.

    `files` are those at the place, if they have been listed. On a disk, their hashes are compared;
    in a bucket, the MD5s that it tells.

    Raises:
        UserError: the shards there were cut in another way.
    """
    found: list[ShardRecord] = []
    while not (found and found[-1].ends):
        name = shard_name(unit, len(found))
        try:
            record = ShardRecord.model_validate_json((place / f"{name}.json").read())
        except (FileNotFoundError, IsADirectoryError, ValidationError):
            break
        if record.plan != plan:
            raise UserError(
                f"token store {place}: {name} was made with another --shard-bytes, or by another "
                f"version of jaxformer; give the same size, or remove the folder"
            )
        if record.shard.name != name or not _are_there(place, record.shard, files):
            break
        found.append(record)
    return found


def _are_there(place: Place, shard: Shard, files: dict[str, Stored] | None) -> bool:
    for name, record in file_names(shard):
        try:
            stored = (place / name).stored() if files is None else files.get(name)
        except FileNotFoundError:
            return False
        if fault_of(place / name, record, stored, hashed=True):
            return False
    return True


def changed(source: Source) -> UserError:
    return UserError(f"data source '{source.name}' changed while it was read; run again")


def write_unit(
    recipe: Recipe,
    plan: str,
    shard_bytes: int,
    number: int,
    unit: Unit,
    folder: Path,
    report: Callable[[int], None],
) -> None:
    """Write the shards of a unit that are not there yet, first into `folder`, on this machine.

    `report` gets how much of the unit has been read.

    Raises:
        UserError: a row is wrong, or the place cannot be written.
    """
    place = recipe.place_of_units
    done = records_of(place, plan, number)
    if done and done[-1].ends:
        return
    writer = _UnitWriter(recipe, plan, shard_bytes, number, folder, done)
    documents = read_documents(recipe.source, recipe.format, recipe.lengths, unit)
    for batch in _batches(itertools.islice(documents, writer.rows, None)):
        writer.add(batch)
        report(batch[-1].done)
        batch.clear()  # long texts are let go before the next are read
    writer.finish(ends=True)


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text or "")
        if characters >= CHARACTERS_AT_ONCE or len(batch) >= DOCUMENTS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _UnitWriter:
    def __init__(
        self,
        recipe: Recipe,
        plan: str,
        shard_bytes: int,
        unit: int,
        folder: Path,
        done: list[ShardRecord],
    ) -> None:
        self._recipe, self._plan, self._shard_bytes = recipe, plan, shard_bytes
        self._unit, self._folder, self._number = unit, folder, len(done)
        self._signer = Signer(recipe.deduplicate) if recipe.deduplicate else None
        self.rows = done[-1].rows if done else 0  # of the unit, up to here
        self._begin()

    def _begin(self) -> None:
        dtype = token_dtype(self._recipe.tokenizer.vocab_size).name
        has_loss_mask = self._recipe.format.instructions is not None
        name = shard_name(self._unit, self._number)
        self._shard = ShardWriter(self._folder, name, dtype, has_loss_mask)
        self._left_out: Counter[str] = Counter()
        self._largest = 0

    def add(self, batch: list[Document]) -> None:
        texts = [document for document in batch if document.text]
        encoded = self._recipe.format.encode(texts, self._recipe.tokenizer)
        for document in batch:
            self.rows += 1
            if not document.text:
                self._left_out[document.left_out or EMPTY] += 1
                continue
            for ids, learnt, text_bytes, ends in encoded:
                if learnt is not None and not learnt.any():
                    self._left_out[EMPTY] += 1
                else:
                    self._largest = max(self._largest, int(ids.max(initial=0)))
                    self._shard.add(ids, learnt, text_bytes, ends)
                    if ends and self._signer:
                        self._shard.sign(self._signer.sign(document.text))
                if ends:
                    break
            if self._shard.bytes >= self._shard_bytes:
                self.finish(ends=False)
                self._begin()

    def finish(self, *, ends: bool) -> None:
        """Finish the shard; the unit may end with one that holds nothing."""
        place, vocab_size = self._recipe.place_of_units, self._recipe.tokenizer.vocab_size
        if self._largest >= vocab_size:
            raise ValueError(f"tokenizer '{self._recipe.tokenizer.name}' gave id {self._largest}")
        if self._recipe.source.fingerprint() != self._recipe.fingerprint:
            raise changed(self._recipe.source)
        shard = self._shard.finish()
        for ending in shard.files:
            (place / f"{shard.name}{ending}").take(self._shard.path(ending))
        record = ShardRecord(
            plan=self._plan,
            rows=self.rows,
            ends=ends,
            largest_id=self._largest,
            left_out=dict(sorted(self._left_out.items())),
            shard=shard,
        )
        (place / f"{shard.name}.json").write(record.model_dump_json().encode())
        self._number += 1
