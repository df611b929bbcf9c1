"""Warns when validation text is also trained on."""

import logging

from jaxformer.config import DataConfig, SourceConfig
from jaxformer.data.prepare import recipe_of
from jaxformer.data.sources import FileSource
from jaxformer.data.store import TOKENS, UnusableStoreError, read_store
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.schema import UserError

logger = logging.getLogger(__name__)


def warn_of_overlap(data: DataConfig, tokenizer: Tokenizer) -> None:
    """Compares names of files and, of prepared sources, hashes of tokens.

    Text that is only similar goes unseen, and so does a training source that is not on this
    machine, as when a run is evaluated elsewhere.
    """
    if data.held_out is None:
        return
    held_out = _traces(data.held_out, data, tokenizer)
    for entry in data.sources:
        if held_out & _traces(entry, data, tokenizer):
            logger.warning(
                "data.validation_source '%s' shares text with the training source '%s': "
                "validation will look better than it is",
                data.validation_source,
                entry.source,
            )


def _traces(entry: SourceConfig, data: DataConfig, tokenizer: Tokenizer) -> set[str]:
    try:
        recipe = recipe_of(entry, data, tokenizer)
    except UserError:
        return set()
    source = recipe.source
    names = source.files if isinstance(source, FileSource) else [source.identity]
    traces = {str(name) for name in names}
    try:
        return traces | {read_store(recipe).manifest.files[TOKENS].sha256}
    except UnusableStoreError:
        return traces
