"""The pictures that a configuration trains and validates on."""

import numpy as np

from jaxformer.config import DataConfig
from jaxformer.data.images.captions import CaptionedRows, captioned_rows
from jaxformer.data.images.making import ImageRecipe
from jaxformer.data.images.rows import ImageRows
from jaxformer.data.images.store import ImageStore
from jaxformer.data.media.parts import Parts, classes_in, ids_of

THREADS_FOR_PILLOW = 4


class ImageParts(Parts[ImageStore, ImageRows | CaptionedRows]):
    """The pictures of every source."""

    recipe = ImageRecipe

    def training_rows(
        self, store: ImageStore, chosen: np.ndarray, data: DataConfig
    ) -> ImageRows | CaptionedRows:
        assert data.images is not None
        if data.images.text is not None:
            return captioned_rows(store, chosen, data, self.tokenizer)
        ids = ids_of(store.manifest, classes_in(self.tokenizer, data))
        return ImageRows(store, chosen, ids, data.sequence_length, data.images.augment)

    validation_rows = training_rows

    def reading_threads(self, data: DataConfig) -> int:
        """Only Pillow lets other threads run meanwhile."""
        assert data.images is not None
        augment = data.images.augment
        uses_pillow = augment.crop is not None or augment.rand_augment is not None
        return THREADS_FOR_PILLOW if uses_pillow else 1
