"""What makes the store of a source of recordings."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxformer.config.audio import AudioConfig
from jaxformer.data.audio.decoding import Waveform, check_soundfile, decode
from jaxformer.data.audio.store import (
    END,
    ENDS,
    PLACES,
    SAMPLE,
    SAMPLES,
    TARGETS,
    AudioManifest,
    AudioStore,
)
from jaxformer.data.media.making import Kept, Recipe, lines, write_file
from jaxformer.data.media.store import Options


class AudioRecipe(Recipe[AudioStore]):
    """What a store of recordings is made from."""

    store, manifest = AudioStore, AudioManifest

    @property
    def audio(self) -> AudioConfig:
        assert self.data.audio is not None
        return self.data.audio

    @property
    def options(self) -> Options:
        return self.audio.model_dump(include={"sample_rate", "column", "text", "label"})

    def check_packages(self) -> None:
        check_soundfile()

    def decode(self, content: bytes, place: str) -> Waveform:
        return decode(content, place, self.audio.sample_rate)

    def write(self, folder: Path, rows: Iterator[Waveform], kept: Kept) -> AudioManifest:
        lengths: list[int] = []
        rate, resampled = self.audio.sample_rate, 0

        def pieces() -> Iterator[bytes]:
            nonlocal resampled
            for each in rows:
                lengths.append(len(each.samples))
                resampled += each.rate != rate
                yield each.samples.astype(SAMPLE).tobytes()

        samples = write_file(folder / SAMPLES, pieces())
        ends = np.cumsum(lengths, dtype=END)
        classes, targets = self.numbered(kept)
        return AudioManifest(
            **self.told(kept),
            classes=classes,
            sample_rate=rate,
            recordings=len(ends),
            samples=int(ends[-1]),
            resampled=resampled,
            files={
                SAMPLES: samples,
                ENDS: write_file(folder / ENDS, [ends.tobytes()]),
                TARGETS: write_file(folder / TARGETS, lines(targets)),
                PLACES: write_file(folder / PLACES, lines(kept.places)),
            },
        )
