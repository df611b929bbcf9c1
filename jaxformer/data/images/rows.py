"""Pictures as rows of batches."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxformer.batch import Batch
from jaxformer.config.images import AugmentConfig
from jaxformer.data.draws import streams
from jaxformer.data.images.augmentation import augmented
from jaxformer.data.images.store import ImageStore
from jaxformer.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class ImageRows:
    """Row r is the picture `chosen[r]` of a store, with its class among those of the run.

    `ids` has the run's class of each class of the store; None if they are the same.
    """

    store: ImageStore
    chosen: np.ndarray = field(repr=False)  # int64 [rows], ascending
    ids: np.ndarray | None  # int32 [classes of the store]
    length: int
    augment: AugmentConfig

    @property
    def tokens(self) -> int:
        return len(self) * self.length

    @property
    def words(self) -> str:
        return f"{len(self):,} pictures"

    def manifest(self) -> dict[str, Any]:
        """What identifies the rows: the same pictures and classes, wherever they are kept."""
        manifest = self.store.manifest
        ids = {} if self.ids is None else {"ids": self.ids.tolist()}
        return {"source": manifest.source, "sha256": manifest.sha256, **ids}

    def text_bytes(self, tokenizer: Tokenizer) -> int:
        """A class counts as one byte: bits per byte are bits per picture."""
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
        places = self.chosen[rows]
        pictures = pictures_at(self.store, places, keys, self.augment)
        labels = self.store.labels[places]
        targets = labels if self.ids is None else self.ids[labels]
        return batch_of(pictures, targets.astype(np.int32)[:, None], self.length)

    def loss_tokens(self) -> int:
        """One class for every picture."""
        return len(self)


def pictures_at(
    store: ImageStore, places: np.ndarray, keys: np.ndarray | None, augment: AugmentConfig
) -> np.ndarray:
    """The pictures of a store at these places, changed as `augment` draws from the keys [places],
    if there are any."""
    pictures = np.array(store.pictures[places])
    return pictures if keys is None else augmented(pictures, streams(keys, places), augment)


def batch_of(pictures: np.ndarray, targets: np.ndarray, length: int) -> Batch:
    """A batch of pictures [rows, height, width, channels] of `length` patches each, and their
    classes [rows, 1]."""
    shape = (len(pictures), length)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
    return Batch(
        inputs=pictures,
        targets=targets,
        positions=positions.copy(),
        segment_ids=np.ones(shape, np.int32),
        loss_mask=np.ones(targets.shape, np.bool_),
    )
