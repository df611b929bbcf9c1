"""Makes the store of a source: reads, decodes, and writes it whole or not at all."""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from jaxformer.config import DataConfig
from jaxformer.data.making import locked, making_folder
from jaxformer.data.manifest import UnusableStoreError
from jaxformer.data.media.records import Labels, Record, Wanted, wanted_of
from jaxformer.data.media.sources import MediaSource, open_media
from jaxformer.data.media.store import (
    MadeOf,
    Options,
    Store,
    StoreManifest,
    read_checked,
    read_manifest,
)
from jaxformer.data.recipe import stores_folder
from jaxformer.data.rows import BadRow
from jaxformer.data.shards import FileRecord
from jaxformer.errors import UserError
from jaxformer.storage import Place
from jaxformer.terminal import in_time, progress, say

AT_ONCE = 64  # rows that a thread decodes in turn
S = TypeVar("S", bound=Store[Any])


@dataclass
class Kept:
    """What belongs to the rows that are kept, and how many rows were left out."""

    targets: list[int | str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    left_out: int = 0
    first_fault: BadRow | None = None


@dataclass(frozen=True)
class Recipe(Generic[S]):
    """What a store is made from; its folder's name is a hash of all that decides its rows.

    `fingerprint` is that of the source when it was looked at first; `limit` is N where labels are
    numbers below N.
    """

    store: ClassVar[type[Store[Any]]]
    manifest: ClassVar[type[StoreManifest]]

    source: MediaSource
    data: DataConfig
    fingerprint: str
    limit: int | None

    @classmethod
    def of(cls, name: str, data: DataConfig, classes: int | None) -> Self:
        """The recipe of the source `name`, of which `classes` are known, if any are.

        Raises:
            UserError: the source is wrong.
        """
        source = open_media(name, wanted_of(data))
        plain = cls(source, data, source.fingerprint(), None)
        numbered = replace(plain, limit=classes)
        if numbered.known is not None:
            return numbered
        return numbered if plain.labels.kind == "numbers" else plain

    def check_packages(self) -> None:
        """Check that what decodes is installed.

        Raises:
            UserError: it is not.
        """
        raise NotImplementedError

    def decode(self, content: bytes, place: str) -> Any:
        """The picture or recording that a file holds.

        Raises:
            BadRow: it holds none.
        """
        raise NotImplementedError

    def write(self, folder: Path, rows: Iterator[Any], kept: Kept) -> StoreManifest:
        """Write the files of the store, but for its manifest; `rows` are decoded as they are taken,
        and what belongs to them is `kept` meanwhile."""
        raise NotImplementedError

    @property
    def options(self) -> Options:
        """What of `data` decides the rows, besides `bad_rows`."""
        raise NotImplementedError

    @property
    def wanted(self) -> Wanted:
        return wanted_of(self.data)

    @property
    def made_of(self) -> MadeOf:
        options = {**self.options, "bad_rows": self.data.bad_rows, "limit": self.limit}
        return MadeOf(self.source.identity, self.fingerprint, options)

    @property
    def place(self) -> Place:
        parts = json.dumps([self.wanted.section, self.manifest.version, *self.made_of])
        return stores_folder(self.data) / hashlib.sha256(parts.encode()).hexdigest()[:32]

    @property
    def known(self) -> Labels | None:
        """What the labels are, if a store says so; the source need not be read, nor be there."""
        try:
            manifest = read_manifest(self.manifest, self.place, self.made_of)
        except UnusableStoreError:
            return None
        return Labels(manifest.label_kind, manifest.classes)

    @property
    def labels(self) -> Labels:
        return self.known or self.source.labels

    def numbered(self, kept: Kept) -> tuple[tuple[str, ...] | None, list[int | str]]:
        """The names of the classes, and the number of each row's among them; texts stay."""
        known, targets = self.source.labels, kept.targets
        if known.kind != "names":
            return known.names, targets
        names = known.names or tuple(sorted({str(each) for each in targets}))
        numbers = {name: number for number, name in enumerate(names)}
        return names, [numbers[str(each)] for each in targets]

    def told(self, kept: Kept) -> dict[str, Any]:
        """What every manifest says, but for its classes and files."""
        return {
            "format": self.manifest.version,
            "source": self.source.name,
            "identity": self.source.identity,
            "source_fingerprint": self.fingerprint,
            "options": self.made_of.options,
            "left_out": kept.left_out,
            "label_kind": self.source.labels.kind,
        }

    def read(self) -> S:
        """The store at its place.

        Raises:
            UnusableStoreError: it cannot be trusted.
        """
        return self.store(self.place, read_checked(self.manifest, self.place, self.made_of))  # type: ignore[return-value]

    def open(self) -> S:
        """The store, made first if there is none that can be trusted.

        Raises:
            UserError: the source is wrong, empty or unreadable, or the folder cannot be written.
        """
        try:
            return self.read()
        except UnusableStoreError:
            pass  # looked at again under the lock, where nobody else on this machine changes it
        name, index = self.source.name, self.place / self.manifest.index
        with locked(self.place, self.data):
            try:
                return self.read()
            except UnusableStoreError as reason:
                if index.exists():
                    what = self.wanted.noun
                    say(f"{what}s of {name}: decoded again because {reason} ({self.place})")
                    index.remove()
            self.check_packages()
            self._make()
            try:
                return self.read()
            except UnusableStoreError as reason:
                raise UserError(
                    f"data source '{name}': its store {self.place} was just made, but {reason}; "
                    f"run again"
                ) from None

    def _make(self) -> None:
        source, place, started = self.source, self.place, time.monotonic()
        with making_folder(place, self.data) as folder:
            kept = Kept()
            manifest = self.write(folder, self._decoded(kept), kept)
            for name in manifest.files:
                (place / name).take(folder / name)
            if source.fingerprint() != self.fingerprint:
                raise UserError(f"data source '{source.name}' changed while it was read; run again")
            (place / manifest.index).write(manifest.model_dump_json(indent=2).encode() + b"\n")
        seconds, what = time.monotonic() - started, self.wanted.noun
        say(f"{source.name}: {manifest.rows:,} {what}s decoded in {in_time(seconds)} ({place})")

    def _decoded(self, kept: Kept) -> Iterator[Any]:
        """What the files of the source hold, in its order, decoded by threads: decoders let others
        run meanwhile."""
        source, threads = self.source, len(os.sched_getaffinity(0))
        records = source.records(self.limit)
        title = f"decoding {source.name}"
        with ThreadPoolExecutor(threads) as pool, progress(title, source.size) as report:
            while several := [*islice(records, AT_ONCE * threads)]:
                starts = range(0, len(several), AT_ONCE)
                pieces = [several[start : start + AT_ONCE] for start in starts]
                decoded = pool.map(lambda piece: [self._tried(each) for each in piece], pieces)
                for record, found in zip(several, chain.from_iterable(decoded), strict=True):
                    if not isinstance(found, BadRow):
                        kept.targets.append(record.target)
                        kept.places.append(record.place)
                        yield found
                    elif self.data.bad_rows == "error":
                        raise found
                    else:
                        kept.left_out += 1
                        kept.first_fault = kept.first_fault or found
                if source.size:
                    report(min(several[-1].done, source.size))
        self._tell(kept)

    def _tell(self, kept: Kept) -> None:
        """Say what was left out.

        Raises:
            UserError: it was everything.
        """
        name, rows = self.source.name, len(kept.targets) + kept.left_out
        if not kept.targets:
            why = f"; all {rows:,} rows were left out, first: {kept.first_fault}" if rows else ""
            raise UserError(f"data source '{name}' holds no {self.wanted.noun}{why}")
        if kept.left_out:
            why = f"the first: {kept.first_fault}"
            say(f"{name}: {kept.left_out:,} of {rows:,} rows left out; {why}")

    def _tried(self, record: Record) -> Any:
        if record.fault is not None:
            return record.fault
        try:
            return self.decode(record.content, record.place)
        except BadRow as fault:
            return fault


def write_file(file: Path, pieces: Iterable[bytes]) -> FileRecord:
    """Write a file, safe on its disk, and give its size and hashes."""
    size, sha256, md5 = 0, hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with file.open("wb") as stream:
        for piece in pieces:
            size += stream.write(piece)
            sha256.update(piece)
            md5.update(piece)
        stream.flush()
        os.fsync(stream.fileno())
    return FileRecord(bytes=size, sha256=sha256.hexdigest(), md5=md5.hexdigest())


def lines(values: Iterable[int | str]) -> Iterator[bytes]:
    """A file of a line of JSON for each value."""
    return (json.dumps(value).encode() + b"\n" for value in values)
