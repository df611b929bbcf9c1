"""What a token store is made from, and where stores are kept."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from jaxformer.config.data import DataConfig, DeduplicateConfig
from jaxformer.data.documents import Format, Lengths
from jaxformer.data.manifest import FORMAT
from jaxformer.data.sources import Source
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.paths import local_path
from jaxformer.storage import Place, is_url

WITH_DUPLICATES = "with_duplicates"


class Reference(NamedTuple):
    """A source, and how its rows become documents."""

    source: Source
    format: Format


@dataclass(frozen=True)
class Recipe:
    """What a store is made from; its folder's name is a hash of all that decides the tokens."""

    source: Source
    tokenizer: Tokenizer
    format: Format
    lengths: Lengths
    options: dict[str, str | int | None]  # of `data`, about the rows to take
    folder: Place
    deduplicate: DeduplicateConfig | None = None
    reference: Reference | None = None  # whose texts are left out

    @property
    def column(self) -> str:
        return ", ".join(column.name for column in self.format.columns)

    @cached_property
    def fingerprint(self) -> str:
        """That of the source when it was looked at first."""
        return self.source.fingerprint()

    @cached_property
    def key(self) -> str:
        source, instructions = self.source, self.format.instructions
        parts = [
            FORMAT,
            source.identity,
            self.fingerprint,
            self.column,
            self.tokenizer.fingerprint,
            {name: value for name, value in self.made_with.items() if value is not None},
            instructions and instructions.model_dump_json(),
            self.reference and self.reference.source.fingerprint(),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    @property
    def made_with(self) -> dict[str, str | int | None]:
        """All options, as the manifest has them."""
        if self.deduplicate is None:
            return self.options
        similar = self.deduplicate.kind == "minhash"
        return self.options | {
            "deduplicate": self.deduplicate.kind,
            "threshold": str(self.deduplicate.threshold) if similar else None,
            "against": self.reference.source.identity if self.reference else None,
        }

    @property
    def place(self) -> Place:
        return self.folder / self.key

    @property
    def place_of_units(self) -> Place:
        """Where units are made; apart, if duplicates will be left out."""
        return self.place if self.deduplicate is None else self.place / WITH_DUPLICATES


def stores_folder(data: DataConfig) -> Place:
    """Where the stores of a configuration are kept."""
    return _place(data.cache_dir if data.store_dir is None else data.store_dir)


def store_of_source(source: str) -> Place | None:
    """The place that `store:PLACE` names; None for other sources."""
    kind, _, where = source.partition(":")
    if kind != "store":
        return None
    return _place(where)


def _place(name: str) -> Place:
    return Place(name if is_url(name) else str(local_path(name).absolute()))
