"""What stores of pictures and of recordings share: a source decoded once, in a folder on a disk,
whose manifest is written last, and says what the store holds and is made of."""

import hashlib
import json
from typing import ClassVar, Generic, NamedTuple, TypeVar

from pydantic import NonNegativeInt, ValidationError

from jaxformer.data.manifest import UnusableStoreError, fault_of
from jaxformer.data.media.records import LabelKind
from jaxformer.data.shards import FileRecord
from jaxformer.data.store import HASHED_ON_OPENING
from jaxformer.schema.base import Schema
from jaxformer.storage import Place

Options = dict[str, str | int | None]


class MadeOf(NamedTuple):
    """What decides the rows of a store: the source's identity and fingerprint, and the options."""

    identity: str
    fingerprint: str
    options: Options


class StoreManifest(Schema):
    """What every store says of itself; `classes` are the names of its labels, None where these are
    numbers or texts."""

    largest_integer = 2**63 - 1
    index: ClassVar[str]  # the name of its file
    version: ClassVar[int]
    contents: ClassVar[tuple[str, ...]]  # the files that identify what is stored

    format: int
    source: str
    identity: str
    source_fingerprint: str
    options: Options
    left_out: NonNegativeInt
    label_kind: LabelKind
    classes: tuple[str, ...] | None
    files: dict[str, FileRecord]

    @property
    def rows(self) -> int:
        """How many pictures or recordings there are."""
        raise NotImplementedError

    @property
    def sha256(self) -> str:
        """A hash of all that is stored, and of the names of classes."""
        parts = [*(self.files[name].sha256 for name in self.contents), self.classes]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


M = TypeVar("M", bound=StoreManifest)


class Store(Generic[M]):
    """An open store, whose rows stay on the disk until they are asked for."""

    def __init__(self, place: Place, manifest: M) -> None:
        self.place, self.manifest = place, manifest

    def verify(self) -> None:
        """Compare the files with their SHA-256.

        Raises:
            UnusableStoreError: they differ.
        """
        check(self.place, self.manifest, hashed=True)


def read_checked(kind: type[M], place: Place, made_of: MadeOf) -> M:
    """The manifest of the store at a place, compared with its files; a small store is hashed.

    Raises:
        UnusableStoreError: absent, incomplete, altered, or made of something else.
    """
    manifest = read_manifest(kind, place, made_of)
    size = sum(record.bytes for record in manifest.files.values())
    check(place, manifest, hashed=size <= HASHED_ON_OPENING)
    return manifest


def read_manifest(kind: type[M], place: Place, made_of: MadeOf) -> M:
    """What the store at a place says of itself; its other files are not looked at.

    Raises:
        UnusableStoreError: absent, of another format, or made of something else.
    """
    manifest = _manifest_at(kind, place)
    if MadeOf(manifest.identity, manifest.source_fingerprint, manifest.options) != made_of:
        raise UnusableStoreError("it is made of something else")
    return manifest


def check(place: Place, manifest: StoreManifest, *, hashed: bool) -> None:
    """Compare the sizes of the files with the manifest, and their hashes if they are to be
    `hashed`.

    Raises:
        UnusableStoreError: they differ.
    """
    there = place.files()
    for name, record in manifest.files.items():
        if fault := fault_of(place / name, record, there.get(name), hashed=hashed):
            raise UnusableStoreError(f"{name} {fault}", [name])


def _manifest_at(kind: type[M], place: Place) -> M:
    try:
        text = (place / kind.index).read().decode("utf-8")
        found = json.loads(text).get("format")
        if found != kind.version:
            raise UnusableStoreError(f"its format is {found!r}, not {kind.version}")
        return kind.model_validate_json(text)
    except (FileNotFoundError, NotADirectoryError):
        raise UnusableStoreError("it has no index") from None
    except ValidationError:
        raise UnusableStoreError("its index does not agree with itself") from None
    except (UnicodeDecodeError, ValueError, AttributeError, RecursionError):
        raise UnusableStoreError("its index is damaged") from None
