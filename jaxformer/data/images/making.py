"""What makes the store of a source of pictures."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxformer.config.images import ImagesConfig
from jaxformer.data.images.decoding import check_pillow, decode
from jaxformer.data.images.store import (
    LABEL,
    LABELS,
    PICTURES,
    TEXTS,
    ImageManifest,
    ImageStore,
)
from jaxformer.data.media.making import Kept, Recipe, lines, write_file
from jaxformer.data.media.store import Options


class ImageRecipe(Recipe[ImageStore]):
    """What a store of pictures is made from."""

    store, manifest = ImageStore, ImageManifest

    @property
    def images(self) -> ImagesConfig:
        assert self.data.images is not None
        return self.data.images

    @property
    def options(self) -> Options:
        images = self.images
        height, width = images.size
        key, _ = images.target
        kept = images.model_dump(include={"channels", "column", key, "fit"})
        return {**kept, "height": height, "width": width}

    def check_packages(self) -> None:
        check_pillow()

    def decode(self, content: bytes, place: str) -> np.ndarray:
        return decode(content, place, self.images)

    def write(self, folder: Path, rows: Iterator[np.ndarray], kept: Kept) -> ImageManifest:
        files = {PICTURES: write_file(folder / PICTURES, (each.tobytes() for each in rows))}
        classes, targets = self.numbered(kept)
        per_class: list[int] = []
        if self.images.text is None:
            labels = np.asarray(targets, LABEL)
            count = len(classes) if classes is not None else self.limit or 0
            per_class = np.bincount(labels, minlength=count).tolist()
            files[LABELS] = write_file(folder / LABELS, [labels.tobytes()])
        else:
            files[TEXTS] = write_file(folder / TEXTS, lines(targets))
        height, width, channels = self.images.shape
        return ImageManifest(
            **self.told(kept),
            classes=classes,
            height=height,
            width=width,
            channels=channels,
            pictures=len(targets),
            per_class=tuple(per_class),
            files=files,
        )
