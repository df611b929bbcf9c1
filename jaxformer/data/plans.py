"""How a store is made: from which recipe, and in which units."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from jaxformer.config import DataConfig, SourceConfig
from jaxformer.data.documents import Lengths, format_of
from jaxformer.data.recipe import Recipe, Reference, stores_folder
from jaxformer.data.sources import Source, open_source
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.unit_writer import write_unit
from jaxformer.data.units import Unit

SHARD_BYTES = 1 << 28


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
    form = format_of(source, data, tokenizer)
    lengths = Lengths(data.min_chars, data.max_chars)
    recipe = Recipe(opened, tokenizer, form, lengths, data.row_options, stores_folder(data))
    if data.deduplicate is not None and _unweighted(source) != data.held_out:
        recipe = replace(recipe, deduplicate=data.deduplicate)
        if data.reference is not None:
            reference = source_named(data.reference.source, data)
            form = format_of(data.reference, data, tokenizer)
            recipe = replace(recipe, reference=Reference(reference, form))
    return Plan(recipe, source, data.model_copy(update={"tokenizer": tokenizer.name}), shard_bytes)


def _unweighted(source: SourceConfig) -> SourceConfig:
    return source.model_copy(update={"weight": 1.0})


def source_named(name: str, data: DataConfig) -> Source:
    """The source `name`, with the policies of `data`."""
    return open_source(name, data.invalid_utf8, data.missing_text, data.bad_rows)
