"""The texts of the pairs that are validated on, as their source has them."""

from typing import NamedTuple

from jaxformer.config import DataConfig, SourceConfig
from jaxformer.data.documents import Lengths, PairFormat, read_documents, sides_of
from jaxformer.data.media.parts import held_out_of
from jaxformer.data.plans import source_named
from jaxformer.data.recipe import store_of_source
from jaxformer.errors import UserError


class PairOfTexts(NamedTuple):
    """What is read, and what is to be written."""

    source: str
    target: str


def validation_texts(data: DataConfig) -> list[PairOfTexts]:
    """The pairs of the validation source, or those of every source that are held out, those that
    are too long for a row among them.

    Raises:
        UserError: there are none, they cannot be read, or only tokens of them are kept.
    """
    if data.held_out is not None:
        return _texts_of(data.held_out, data)
    if not data.validation_fraction:
        raise UserError(
            "there are no pairs to validate on: data.validation_fraction is 0 and "
            "data.validation_source is not set; give one, such as "
            "data.validation_source=jsonl:test.jsonl"
        )
    if data.deduplicate is not None:
        raise UserError(
            "which pairs are held out depends on data.deduplicate, which keeps no texts; give "
            "data.validation_source, such as data.validation_source=jsonl:test.jsonl"
        )
    texts = []
    for entry in data.sources:
        pairs = _texts_of(entry, data)
        held = held_out_of(entry.source, len(pairs), "pairs", data.validation_fraction)
        texts += [pairs[place] for place in held]
    return texts


def _texts_of(entry: SourceConfig, data: DataConfig) -> list[PairOfTexts]:
    assert data.pairs is not None
    if store_of_source(entry.source) is not None:
        raise UserError(
            f"data source '{entry.source}' holds tokens, and translations are compared with texts; "
            f"give data.validation_source, such as data.validation_source=jsonl:test.jsonl"
        )
    form = PairFormat(data.pairs.source, data.pairs.target)
    lengths = Lengths(data.min_chars, data.max_chars)
    documents = read_documents(source_named(entry.source, data), form, lengths)
    return [PairOfTexts(*sides_of(each)) for each in documents if each.text]
