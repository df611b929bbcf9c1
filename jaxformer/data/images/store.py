"""The store of pictures.

`pictures.bin` has the pixels, uint8 [pictures, height, width, channels], and `labels.bin` the
classes, int32 [pictures], or `texts.jsonl` the text of each in a line, all in the order of the
source. `images.json` is the manifest.
"""

import json
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from pydantic import PositiveInt, model_validator

from jaxformer.data.media.store import Store, StoreManifest

PICTURES, LABELS, TEXTS = "pictures.bin", "labels.bin", "texts.jsonl"
LABEL = np.dtype("<i4")


class ImageManifest(StoreManifest):
    """`images.json`; `per_class` is empty where pictures have texts."""

    index = "images.json"
    version = 1

    height: PositiveInt
    width: PositiveInt
    channels: PositiveInt
    pictures: PositiveInt
    per_class: tuple[int, ...]

    @model_validator(mode="after")
    def _agrees_with_its_files(self) -> "ImageManifest":
        sizes = {PICTURES: self.pictures * self.height * self.width * self.channels}
        if self.label_kind != "texts":
            sizes[LABELS] = self.pictures * LABEL.itemsize
        if {*self.files} != {*self.contents} or any(
            self.files[name].bytes != size for name, size in sizes.items()
        ):
            raise ValueError("its files have other sizes than its pictures")
        if self.label_kind == "texts":
            return self
        if sum(self.per_class) != self.pictures:
            raise ValueError("its classes have other numbers of pictures")
        if self.classes is not None and len(self.classes) != len(self.per_class):
            raise ValueError("its classes have other names")
        return self

    @property
    def contents(self) -> tuple[str, ...]:  # type: ignore[override]  # goes by the labels
        return PICTURES, TEXTS if self.label_kind == "texts" else LABELS

    @property
    def rows(self) -> int:
        return self.pictures

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels


class ImageStore(Store[ImageManifest]):
    """An open store of pictures."""

    @cached_property
    def pictures(self) -> np.ndarray:
        """uint8 [pictures, height, width, channels]"""
        manifest = self.manifest
        shape = (manifest.pictures, *manifest.shape)
        return np.memmap((self.place / PICTURES).path, np.uint8, mode="r", shape=shape)

    @cached_property
    def labels(self) -> np.ndarray:
        """int32 [pictures]"""
        return np.fromfile((self.place / LABELS).path, LABEL).astype(np.int32)

    @cached_property
    def texts(self) -> list[str]:
        """The text of each picture."""
        lines = (self.place / TEXTS).read().decode("utf-8").rstrip("\n").split("\n")
        return [json.loads(line) for line in lines]

    def facts(self, names: Sequence[str]) -> dict[str, str]:
        """What is in it, in words; `names` are those of the run's classes."""
        manifest = self.manifest
        size = "×".join(map(str, manifest.shape))
        facts = {"pictures": f"{manifest.pictures:,} of {size}"}
        if manifest.label_kind == "texts":
            sizes = [len(text) for text in self.texts]
            counted = f"{sum(sizes):,} characters, the longest {max(sizes):,}"
            return facts | {"texts": counted, "the first": self.texts[0]}
        named = zip(manifest.classes or names, manifest.per_class, strict=False)
        return facts | {
            "classes": f"{len(manifest.classes or names):,}",
            "per class": ", ".join(f"{name} {count:,}" for name, count in named),
        }
