"""Warns when validation text is also trained on."""

import logging

from jaxformer.config import DataConfig
from jaxformer.data.sources import FileSource, open_source
from jaxformer.data.store import TOKENS, Recipe, UnusableStoreError, read_store
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.schema import UserError

logger = logging.getLogger(__name__)


def warn_of_overlap(data: DataConfig, tokenizer: Tokenizer) -> None:
    """Compares names of files and, of prepared sources, hashes of tokens.

    Text that is only similar goes unseen, and so does a training source that is not on this
    machine, as when a run is evaluated elsewhere.
    """
    if data.validation_source is None:
        return
    held_out = _traces(data.validation_source, data, tokenizer)
    for entry in data.sources:
        if held_out & _traces(entry.source, data, tokenizer):
            logger.warning(
                "data.validation_source '%s' shares text with the training source '%s': "
                "validation will look better than it is",
                data.validation_source,
                entry.source,
            )


def _traces(name: str, data: DataConfig, tokenizer: Tokenizer) -> set[str]:
    try:
        source = open_source(name, data.column, data.invalid_utf8)
    except UserError:
        return set()
    names = source.files if isinstance(source, FileSource) else [source.identity]
    traces = {str(name) for name in names}
    recipe = Recipe(source, tokenizer, data.column, data.invalid_utf8, data.cache_dir)
    try:
        return traces | {read_store(recipe).manifest.files[TOKENS].sha256}
    except UnusableStoreError:
        return traces
