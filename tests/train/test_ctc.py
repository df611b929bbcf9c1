"""A tiny model learns to hear letters, which are tones, in recordings made up here."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta

from jaxformer.batch import Batch
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import build_model
from jaxformer.objectives import CTCConfig
from jaxformer.train.step import StepOptions, init_state, make_train_step

LETTERS, RATE, HOP, SUBSAMPLING = 3, 800, 8, 2
TONES = (60, 130, 260)  # Hz
MODEL = {
    "d_model": 16,
    "num_layers": 1,
    "ffn": {"kind": "gelu", "d_hidden": 32},
    "order": "full",
    "tie_embeddings": False,
    "inputs": {
        "kind": "frames",
        "sample_rate": RATE,
        "window": 32,
        "hop": HOP,
        "mels": 8,
        "subsampling": SUBSAMPLING,
        "augment": {"time_masks": 1, "frequency_masks": 1, "widest": 1},
    },
}
MIXERS = [
    {"kind": "attention", "num_heads": 2},
    {"kind": "bidirectional", "mixer": {"kind": "retention", "num_heads": 2}},
]
PLACES, PLACES_OF_LETTER, MOST = 16, 4, 4


def recordings() -> Batch:
    """Eight recordings of one to four letters, each a tone of random loudness and phase."""
    random = np.random.default_rng(0)
    samples = PLACES * SUBSAMPLING * HOP
    waveform = np.zeros((8, samples), np.float32)
    targets, loss_mask = np.zeros((8, MOST), np.int32), np.zeros((8, MOST), bool)
    positions = np.broadcast_to(np.arange(PLACES, dtype=np.int32), (8, PLACES))
    segment_ids = np.zeros((8, PLACES), np.int32)
    length = PLACES_OF_LETTER * SUBSAMPLING * HOP
    time = np.arange(int(0.8 * length)) / RATE  # a pause follows
    for row in range(8):
        count = 1 + row % MOST
        letters = random.integers(0, LETTERS, count)
        for place, letter in enumerate(letters):
            loudness, phase = random.uniform(0.2, 1), random.uniform(0, 6)
            tone = loudness * np.sin(2 * np.pi * TONES[letter] * time + phase)
            waveform[row, place * length : place * length + len(tone)] = tone
        targets[row, :count], loss_mask[row, :count] = letters, True
        segment_ids[row, : count * PLACES_OF_LETTER] = 1
    return Batch(waveform, targets, positions, segment_ids, loss_mask)


@pytest.mark.parametrize("mixer", MIXERS, ids=lambda mixer: mixer["kind"])
def test_a_tiny_model_learns_eight_recordings_by_heart(mixer):
    config = ModelConfig.model_validate(MODEL | {"mixer": mixer})
    model = build_model(config, vocab_size=LETTERS + 1)
    objective, batch = CTCConfig(), recordings()
    example = jnp.zeros(model.config.inputs.example.shape)
    params = meta.unbox(jax.jit(model.init)(jax.random.key(0), example)["params"])

    def loss_of(params, reference, batch, rngs):
        return objective.loss(model, params, batch, z_loss=0.0, rngs=rngs, reference=None)

    optimizer = optax.adam(1e-2)
    options = StepOptions(1e-2, accumulation=2, clip_norm=1.0, keys=("noise",))
    step = jax.jit(make_train_step(loss_of, optimizer, lambda step: 1.0, options))
    evaluate = jax.jit(lambda params: objective.evaluate(model, params, batch))
    state = init_state(params, optimizer, None)
    before = evaluate(params)
    for _ in range(150):
        state, metrics = step(state, batch)
    assert metrics["tokens"] == batch.loss_mask.sum() and metrics["too_long"] == 0
    after = evaluate(state.params)
    assert before.figures["label_error_rate"] > 0
    assert after.figures["label_error_rate"] == 0
    assert after.sums.loss / after.sums.tokens < 0.05
