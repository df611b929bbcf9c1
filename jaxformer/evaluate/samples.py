"""A few validation rows of pictures or recordings, with what a run says of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxformer.batch import Batch
from jaxformer.data.loader import Mixture
from jaxformer.data.stores import Part
from jaxformer.evaluate.predict import answers
from jaxformer.generate.text import until_end
from jaxformer.objectives import CTCConfig
from jaxformer.ops.spectrogram import log_mels
from jaxformer.run import Run

SHOWN = 8
MELS = 80
OF_TEXTS, OF_CLASSES = "said: {}; heard: {}", "{}, taken for {}"
BELS = 8  # below the loudest, where a spectrogram is black


class Sample(NamedTuple):
    """A picture, or a spectrogram of a recording with low sounds below: uint8
    [height, width, channels]; what it is, and what a run says."""

    pixels: np.ndarray
    true: str
    answer: str
    form: str

    @property
    def caption(self) -> str:
        return self.form.format(self.true, self.answer)


def samples_of(run: Run, validation: Sequence[Part]) -> list[Sample]:
    """Up to SHOWN rows from all over the validation data of a run with classes or texts; none if
    there is no such data."""
    mixture = Mixture(validation)
    if not len(mixture):
        return []
    numbers = np.linspace(0, len(mixture) - 1, SHOWN).astype(int)
    batch = mixture.pack(np.unique(numbers))
    listens = run.config.data.writes or isinstance(run.config.train.objective, CTCConfig)
    form = OF_TEXTS if listens else OF_CLASSES
    targets = zip(batch.targets, batch.loss_mask, strict=True)
    ids = (until_end(labels[mask], run.tokenizer.eos_id) for labels, mask in targets)
    true = [run.tokenizer.decode(each.tolist()) for each in ids]
    every = zip(_pictures(run, batch), true, answers(run, batch), strict=True)
    return [Sample(*each, form) for each in every]


def _pictures(run: Run, batch: Batch) -> Sequence[np.ndarray]:
    audio = run.config.data.audio
    if audio is None:
        return list(batch.inputs)
    rate = audio.sample_rate
    window, hop = rate // 40, rate // 100  # 25 and 10 ms
    heard = batch.inputs.source if run.config.data.writes else batch
    waveforms = heard.inputs.astype(np.float32) / 2**15
    logs = np.asarray(
        log_mels(waveforms, sample_rate=rate, window=window, hop=hop, mels=MELS, scale="slaney")
    )
    shares = np.clip(1 + (logs - logs.max(axis=(1, 2), keepdims=True)) / BELS, 0, 1)
    ends = (heard.segment_ids != 0).sum(axis=1) * audio.samples_per_place // hop
    pixels = np.flip(np.rint(255 * shares).astype(np.uint8), axis=2)
    return [row[:end].T[..., None] for row, end in zip(pixels, ends, strict=True)]
