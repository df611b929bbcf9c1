"""Leaves documents out of a store that are in it already, or in a reference.

The units are made whole first, with a signature of every document beside each shard. When all are
there, the first document of those that are alike stays, in the order of the source, and the shards
are written again without the others. So the result does not depend on who made which unit.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxformer.data.documents import Format, Lengths, read_documents
from jaxformer.data.shards import END, SIGNATURES, Shard, ShardWriter, Stretch
from jaxformer.data.signatures import Signer, first_of_each
from jaxformer.data.sources import Source
from jaxformer.data.store import TokenStore
from jaxformer.storage import Place

TOKENS_AT_ONCE = 1 << 22


def signatures_of(source: Source, form: Format, lengths: Lengths, signer: Signer) -> np.ndarray:
    """The signatures of all documents of a reference: uint64 [documents, numbers]."""
    documents = read_documents(source, form, lengths)
    signed = [signer.sign(document.text) for document in documents if document.text]
    return np.array(signed, np.uint64).reshape(len(signed), signer.numbers)


def documents_to_keep(place: Place, shards: Sequence[Shard], known: np.ndarray) -> np.ndarray:
    """bool [documents]; `known` are the signatures of a reference."""

    def tables() -> Iterator[np.ndarray]:
        for shard in shards:
            data = (place / f"{shard.name}{SIGNATURES}").read()
            yield np.frombuffer(data, "<u8").reshape(shard.documents, -1)

    return first_of_each(tables, known, sum(shard.documents for shard in shards))


def without_others(store: TokenStore, number: int, keep: np.ndarray, folder: Path) -> Shard:
    """Write shard `number` of a store again into `folder`, with the documents to `keep` alone: bool
    [documents of the shard]."""
    start, shard, table = store.shard(number)
    writer = ShardWriter(folder, shard.name, store.manifest.dtype, store.has_loss_mask)
    sizes = np.diff(table, axis=0, prepend=np.zeros((1, table.shape[1]), table.dtype))
    first = 0
    while first < len(keep):
        # As many documents as there are in TOKENS_AT_ONCE, or one that is longer.
        begin = int(table[first, END] - sizes[first, END])
        last = int(np.searchsorted(table[:, END], begin + TOKENS_AT_ONCE, side="right"))
        last = max(last, first + 1)
        kept = keep[first:last]
        if kept.any():
            stretch = store.read(start + begin, start + int(table[last - 1, END]))
            mask = np.repeat(kept, sizes[first:last, END])
            learnt = None if stretch.learnt is None else stretch.learnt[mask]
            parts = Stretch(stretch.tokens[mask], stretch.starts[mask], learnt)
            writer.add_documents(parts, sizes[first:last][kept])
        first = last
    return writer.finish()
