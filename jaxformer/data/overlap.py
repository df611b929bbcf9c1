"""Warns when data to validate on is also trained on."""

from jaxformer.config import DataConfig, SourceConfig
from jaxformer.data.file_source import FileSource
from jaxformer.data.manifest import UnusableStoreError, read_index
from jaxformer.data.media.records import wanted_of
from jaxformer.data.media.sources import open_media
from jaxformer.data.plans import plan_of
from jaxformer.data.recipe import store_of_source
from jaxformer.data.store import read_manifest
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import UserError
from jaxformer.parallel import processes
from jaxformer.terminal import say


def warn_of_overlap(data: DataConfig, tokenizer: Tokenizer) -> None:
    """Compares names of files and, for prepared sources of text, hashes of tokens.

    Data that is only similar goes unnoticed, and so does a training source that is not on this
    machine, as when a run is evaluated elsewhere.
    """
    if data.held_out is None or not processes.is_first():
        return
    what = f"{wanted_of(data).noun}s" if data.is_media else "text"
    held_out = _traces(data.held_out, data, tokenizer)
    for entry in data.all_sources:
        if held_out & _traces(entry, data, tokenizer):
            say(
                f"warning: data.validation_source '{data.validation_source}' shares {what} with "
                f"the training source '{entry.source}': validation will look better than it is"
            )


def _traces(entry: SourceConfig, data: DataConfig, tokenizer: Tokenizer) -> set[str]:
    traces: set[str] = set()
    try:
        if data.is_media:
            return open_media(entry.source, wanted_of(data)).traces
        place = store_of_source(entry.source)
        if place is not None:
            manifest = read_index(place)
            return {manifest.identity, manifest.sha256}
        recipe = plan_of(entry, data, tokenizer).recipe
        source = recipe.source
        names = source.files if isinstance(source, FileSource) else ()
        traces = {source.identity, *map(str, names)}
        return traces | {read_manifest(recipe).sha256}
    except (UserError, UnusableStoreError):
        return traces
