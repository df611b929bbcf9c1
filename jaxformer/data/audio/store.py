"""The store of recordings.

`samples.bin` has all samples one after another, int16; `ends.bin` where each recording ends among
them, int64 [recordings]; `targets.jsonl` the text of each, or the number of its class, and
`places.jsonl` where it comes from, a line for each. `audio.json` is the manifest.
"""

import json
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from pydantic import NonNegativeInt, PositiveInt, model_validator

from jaxformer.data.media.store import Store, StoreManifest
from jaxformer.terminal import in_time

SAMPLES, ENDS, TARGETS, PLACES = "samples.bin", "ends.bin", "targets.jsonl", "places.jsonl"
SAMPLE, END = np.dtype("<i2"), np.dtype("<i8")


class AudioManifest(StoreManifest):
    """`audio.json`; `resampled` counts the recordings that had another sample rate."""

    index = "audio.json"
    version = 1
    contents = (SAMPLES, ENDS, TARGETS)

    sample_rate: PositiveInt
    recordings: PositiveInt
    samples: PositiveInt
    resampled: NonNegativeInt

    @model_validator(mode="after")
    def _agrees_with_its_files(self) -> "AudioManifest":
        sizes = {SAMPLES: self.samples * SAMPLE.itemsize, ENDS: self.recordings * END.itemsize}
        if set(self.files) != {*self.contents, PLACES} or any(
            self.files[name].bytes != size for name, size in sizes.items()
        ):
            raise ValueError("its files have other sizes than its recordings")
        return self

    @property
    def rows(self) -> int:
        return self.recordings


class AudioStore(Store[AudioManifest]):
    """An open store of recordings."""

    @cached_property
    def samples(self) -> np.ndarray:
        """int16 [samples of all recordings]"""
        shape = (self.manifest.samples,)
        return np.memmap((self.place / SAMPLES).path, SAMPLE, mode="r", shape=shape)

    @cached_property
    def ends(self) -> np.ndarray:
        """int64 [recordings + 1]: recording r has the samples from ends[r] to ends[r + 1]."""
        ends = np.fromfile((self.place / ENDS).path, END).astype(np.int64)
        return np.concatenate([np.zeros(1, np.int64), ends])

    @cached_property
    def targets(self) -> list[int | str]:
        """The text of each recording, or the number of its class."""
        return self._lines(TARGETS)

    def facts(self, names: Sequence[str]) -> dict[str, str]:
        """What is in it, in words; `names` are those of the run's classes, if it has some."""
        manifest = self.manifest
        seconds = manifest.samples / manifest.sample_rate
        facts = {
            "recordings": f"{manifest.recordings:,}, {in_time(seconds)}",
            "longest": f"{np.diff(self.ends).max() / manifest.sample_rate:,.2f} s",
            "resampled": f"{manifest.resampled:,} to {manifest.sample_rate:,} Hz",
        }
        if manifest.label_kind == "texts":
            texts = [str(each) for each in self.targets]
            characters = Counter("".join(texts))
            return facts | {
                "texts": f"{characters.total():,} characters, the longest {max(map(len, texts)):,}",
                "characters": "".join(sorted(characters)),
            }
        counts = Counter(self.targets)
        named = enumerate(manifest.classes or names)
        return facts | {
            "classes": f"{len(manifest.classes or names):,}",
            "per class": ", ".join(f"{name} {counts[number]:,}" for number, name in named),
        }

    def place_of(self, recording: int) -> str:
        """Where a recording comes from, for messages."""
        return str(self._lines(PLACES)[recording])

    def _lines(self, name: str) -> list[int | str]:
        lines = (self.place / name).read().decode("utf-8").rstrip("\n").split("\n")
        return [json.loads(line) for line in lines]
