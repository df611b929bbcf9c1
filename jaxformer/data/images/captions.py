"""Pictures with a text each, as rows of batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxformer.batch import Batch, Pair, Source
from jaxformer.config import DataConfig
from jaxformer.config.images import ImagesConfig
from jaxformer.data.images.rows import pictures_at
from jaxformer.data.images.store import ImageStore
from jaxformer.data.tokenizers import Tokenizer, source_ids
from jaxformer.errors import UserError
from jaxformer.terminal import say


@dataclass(frozen=True)
class CaptionedRows:
    """Row r is the picture `chosen[r]` of a store and the ids of its text, `texts[r]`."""

    store: ImageStore
    chosen: np.ndarray = field(repr=False)  # int64 [rows], ascending
    texts: Sequence[np.ndarray] = field(repr=False)  # int32 [up to length] each
    length: int
    images: ImagesConfig

    @property
    def tokens(self) -> int:
        return len(self) * self.length

    @property
    def words(self) -> str:
        return f"{len(self):,} pictures with texts"

    def manifest(self) -> dict[str, Any]:
        """What identifies the rows: the same pictures and texts, wherever they are kept."""
        manifest = self.store.manifest
        fill = {} if self.images.fill is None else {"fill": self.images.fill}
        return {"source": manifest.source, "sha256": manifest.sha256, **fill}

    def text_bytes(self, tokenizer: Tokenizer) -> int:
        """A pair counts as one byte: bits per byte are bits per pair."""
        return self.loss_tokens()

    def __len__(self) -> int:
        return len(self.chosen)

    def pack(self, rows: np.ndarray, keys: np.ndarray | None = None) -> Batch:
        """The rows with these numbers; see `Batch`.

        Args:
            keys: uint64 [rows], from which the augmentation of each row is drawn; None for pictures
                as they are.
        """
        rows = np.asarray(rows, np.int64)
        pictures = pictures_at(self.store, self.chosen[rows], keys, self.images.augment)
        texts = [self.texts[int(row)] for row in rows]
        return batch_of(pictures, texts, self.length, self.images.fill)

    def loss_tokens(self) -> int:
        """One pair for every picture."""
        return len(self)


def batch_of(
    pictures: np.ndarray, texts: Sequence[np.ndarray], length: int, fill: int | None
) -> Batch:
    """A batch of pairs: pictures [rows, height, width, channels], and texts of up to `length` ids
    each, with `fill` or else padding behind them."""
    tokens, positions, segment_ids = _laid(texts, length, fill)
    return Batch(
        inputs=Pair(tokens, Source(pictures)),
        targets=np.zeros((len(texts), 1), np.int32),
        positions=positions,
        segment_ids=segment_ids,
        loss_mask=np.ones((len(texts), 1), np.bool_),
    )


def _laid(
    texts: Sequence[np.ndarray], length: int, fill: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, positions and documents, int32 [texts, length] each."""
    shape = (len(texts), length)
    tokens = np.full(shape, 0 if fill is None else fill, np.int32)
    segment_ids = np.full(shape, 0 if fill is None else 1, np.int32)
    for row, ids in enumerate(texts):
        tokens[row, : len(ids)], segment_ids[row, : len(ids)] = ids, 1
    return tokens, np.arange(length, dtype=np.int32) * segment_ids, segment_ids


def rows_of(
    texts: Sequence[str], data: DataConfig, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens, positions and documents of texts, as those of a batch.

    Raises:
        UserError: data.images.fill is no id.
    """
    assert data.images is not None
    check_fill(data.images, tokenizer)
    whole = source_ids(tokenizer, texts)
    cut_off = [cut(ids, data.sequence_length) for ids in whole]
    return _laid(cut_off, data.sequence_length, data.images.fill)


def captioned_rows(
    store: ImageStore, chosen: np.ndarray, data: DataConfig, tokenizer: Tokenizer
) -> CaptionedRows:
    """The rows of a store that are `chosen`; it is said how many of their texts are cut.

    Raises:
        UserError: data.images.fill is no id.
    """
    images, length, source = data.images, data.sequence_length, store.manifest.source
    assert images is not None
    check_fill(images, tokenizer)
    whole = source_ids(tokenizer, [store.texts[row] for row in chosen])
    sizes = np.asarray([len(ids) for ids in whole])
    if long := int(np.count_nonzero(sizes > length)):
        say(
            f"{source}: cut {long:,} of {len(whole):,} texts to data.sequence_length {length}; the "
            f"longest has {sizes.max():,} tokens"
        )
    return CaptionedRows(store, chosen, [cut(ids, length) for ids in whole], length, images)


def check_fill(images: ImagesConfig, tokenizer: Tokenizer) -> None:
    """Check that what stands behind texts is an id.

    Raises:
        UserError: it is none.
    """
    if images.fill is not None and images.fill >= tokenizer.vocab_size:
        raise UserError(
            f"data.images.fill is {images.fill}, and data.tokenizer '{tokenizer.name}' has ids "
            f"below {tokenizer.vocab_size}; give one of these, or leave it out"
        )


def cut(ids: np.ndarray, length: int) -> np.ndarray:
    """A text of up to `length` ids, which ends as the whole one does."""
    return ids if len(ids) <= length else np.append(ids[: length - 1], ids[-1])
