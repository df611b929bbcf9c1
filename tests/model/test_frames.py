"""Recordings as log-mel frames against their definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from pydantic import ValidationError
from scipy.special import erf

from jaxformer.config import Config, TrainConfig
from jaxformer.model.accounting import count_parameters, flops_per_token
from jaxformer.model.config import ModelConfig
from jaxformer.model.inputs.frames import SpecAugmentConfig, augmented
from jaxformer.model.language_model import LanguageModel, build_model
from jaxformer.model.rows import RowInfo
from jaxformer.objectives import CTCConfig
from jaxformer.ops.masks import drawn_stretches, outside
from jaxformer.ops.spectrogram import log_mels

D_MODEL, MELS, WINDOW, HOP, VOCAB = 8, 3, 20, 8, 5
MODEL = {
    "d_model": D_MODEL,
    "num_layers": 1,
    "mixer": {"kind": "attention", "num_heads": 2},
    "ffn": {"kind": "gelu", "d_hidden": 12},
    "order": "full",
    "positions": {"kind": "none"},
    "tie_embeddings": False,
}
FRAMES = {
    "kind": "frames",
    "sample_rate": 400,
    "window": WINDOW,
    "hop": HOP,
    "mels": MELS,
    "subsampling": 2,
}
# How many frames there are after each convolution, of four.
STRIDES = {1: (1, 1), 2: (1, 2), 4: (2, 2)}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def model_of(inputs: dict | None = None, **model: object) -> tuple[LanguageModel, dict]:
    return built({"inputs": FRAMES | (inputs or {})} | model)


def built(options: dict) -> tuple[LanguageModel, dict]:
    config = ModelConfig.model_validate(MODEL | options)
    model = build_model(config, vocab_size=VOCAB, dtype=jnp.float64)
    example = jnp.zeros(config.inputs.example.shape)
    params = meta.unbox(jax.jit(model.init)(jax.random.key(0), example)["params"])
    leaves, tree = jax.tree.flatten(params)
    random = np.random.default_rng(1)
    moved = [leaf.astype(np.float64) + 0.3 * random.normal(size=leaf.shape) for leaf in leaves]
    return model, jax.tree.unflatten(tree, moved)


def sound(places: int, subsampling: int = 2, rows: int = 2) -> np.ndarray:
    samples = (rows, places * subsampling * HOP)
    return np.random.default_rng(2).uniform(-1, 1, samples)


def rows_of(waveform: np.ndarray, *places: int, subsampling: int = 2) -> tuple[np.ndarray, ...]:
    """Recordings with so many places each: positions and segments."""
    length = waveform.shape[1] // (subsampling * HOP)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (len(waveform), length))
    segment_ids = (positions < np.array(places)[:, None]).astype(np.int32)
    return waveform, positions, segment_ids


def embedded(model: LanguageModel, params: dict, *rows: np.ndarray) -> np.ndarray:
    def embed(model: LanguageModel) -> jax.Array:
        info = model.inputs.rows_of(rows[0])
        if len(rows) > 1:
            info = info._replace(positions=rows[1], segment_ids=rows[2])
        return model.inputs.embed(jnp.asarray(rows[0]), info)

    return np.asarray(jax.jit(lambda params: model.apply({"params": params}, method=embed))(params))


def logits_of(model: LanguageModel, params: dict, *rows: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(model.apply)({"params": params}, *rows))


def convolved(params: dict, mels: np.ndarray, strides: tuple[int, int]) -> np.ndarray:
    """[frames, mels] → [places, d_model], one place and one tap at a time."""
    x = mels
    for number, stride in enumerate(strides, start=1):
        weights = params[f"convolution_{number}"]
        made = []
        for place in range(0, len(x), stride):
            taps = [(tap, place + tap - 1) for tap in range(3) if 0 <= place + tap - 1 < len(x)]
            y = weights["bias"] + sum(x[at] @ weights["kernel"][tap] for tap, at in taps)
            made.append(y * (1 + erf(y / np.sqrt(2))) / 2)
        x = np.array(made)
    return x


@pytest.mark.parametrize("subsampling", [1, 2, 4])
@pytest.mark.parametrize("normalise", ["recording", "whisper"])
def test_frames_are_two_convolutions_of_normalised_log_mels(subsampling, normalise):
    model, params = model_of({"subsampling": subsampling, "normalise": normalise})
    waveform = sound(3, subsampling)
    logs = log_mels(waveform, sample_rate=400, window=WINDOW, hop=HOP, mels=MELS, scale="slaney")
    for found, row in zip(embedded(model, params, waveform), np.asarray(logs), strict=True):
        if normalise == "recording":
            mels = (row - row.mean(0)) / np.sqrt(row.var(0) + 1e-5)
        else:
            mels = (np.maximum(row, row.max() - 8) + 4) / 4
        expected = convolved(params, mels, STRIDES[subsampling])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("subsampling", [1, 2, 4])
def test_padding_leaves_no_trace(subsampling):
    model, params = model_of({"subsampling": subsampling}, positions={"kind": "rope"})
    waveform = sound(5, subsampling)
    alone = waveform[:, : 3 * subsampling * HOP]
    expected = logits_of(model, params, alone)
    behind = np.random.default_rng(3).normal(size=waveform.shape)
    behind[:, : alone.shape[1]] = alone
    for filled in (behind, np.pad(alone, [(0, 0), (0, 4 * subsampling * HOP)])):
        rows = rows_of(filled, 3, 3, subsampling=subsampling)
        found = logits_of(model, params, *rows)
        np.testing.assert_allclose(found[:, :3], expected, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(embedded(model, params, *rows)[:, 3:], 0)


def test_silence_that_is_heard_is_sound_like_any_other():
    """Of rows of five places, of which three and two are filled; what lies behind is not heard."""
    (model, params), (hearing, _) = model_of(), model_of({"silence": "heard"})
    rows = rows_of(sound(5), 3, 2)
    real = np.repeat(rows[2] != 0, 2 * HOP, axis=1)
    expected = logits_of(model, params, np.where(real, rows[0], 0))
    found = logits_of(hearing, params, *rows)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert np.abs(logits_of(model, params, *rows) - expected)[:, 0].max() > 0.01


@pytest.mark.parametrize("normalise", ["recording", "whisper"])
def test_packed_recordings_equal_each_recording_alone(normalise):
    """Of two, three and one places, with a place of other sound between them."""
    model, params = model_of({"subsampling": 2, "normalise": normalise}, positions={"kind": "rope"})
    waveform = sound(9, rows=1)
    segments = np.array([[1, 1, 0, 2, 2, 2, 0, 3, 0]], np.int32)
    positions = np.array([[0, 1, 0, 0, 1, 2, 0, 0, 0]], np.int32)
    found = logits_of(model, params, waveform, positions, segments)[0]
    for number in (1, 2, 3):
        places = segments[0] == number
        alone = waveform.reshape(9, -1)[places].reshape(1, -1)
        expected = logits_of(model, params, alone)[0]
        np.testing.assert_allclose(found[places], expected, rtol=0, atol=1e-11)


def test_whole_numbers_are_the_waveform_times_32768():
    model, params = model_of()
    numbers = np.round(sound(3) * 32767).astype(np.int16)
    found, expected = (embedded(model, params, each) for each in (numbers, numbers / 32768))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_positions_are_added_to_places(kind):
    positions = {"kind": kind} | ({"max_length": 6} if kind == "learned" else {})
    (plain, _), (model, params) = model_of(), model_of(positions=positions)
    waveform = sound(4)
    added = embedded(model, params, waveform) - embedded(plain, params, waveform)
    if kind == "learned":
        np.testing.assert_allclose(added[0], params["position_embedding"][:4], atol=1e-12)
    else:
        waves = 10000.0 ** (-np.arange(0, D_MODEL, 2) / D_MODEL)
        phases = np.arange(4)[:, None] * waves
        expected = np.stack([np.sin(phases), np.cos(phases)], -1).reshape(4, D_MODEL)
        np.testing.assert_allclose(added[1], expected, atol=1e-6)


def test_masks_are_stretches_of_uniform_length_within_the_recording():
    widest, lengths = np.full(4000, 4), np.where(np.arange(4000) % 2, 10, 3)
    drawn = drawn_stretches(jax.random.key(0), 1, widest, lengths)
    places = np.broadcast_to(np.arange(12), (4000, 12))
    kept = np.asarray(outside(places, jax.tree.map(lambda each: each[:, None], drawn)))
    for row, length in zip(~kept, lengths, strict=True):
        hidden = np.flatnonzero(row)
        assert hidden.size == 0 or hidden[-1] - hidden[0] + 1 == hidden.size
        assert (hidden < length).all()
    widths = (~kept).sum(axis=1)
    for length, most in ((10, 4), (3, 3)):
        counts = np.bincount(widths[lengths == length], minlength=5)
        np.testing.assert_allclose(counts[: most + 1] / 2000, 1 / (most + 1), atol=0.04)
    # A stretch of one place is anywhere, with the same probability.
    ones = (~kept)[(widths == 1) & (lengths == 10)]
    np.testing.assert_allclose(ones.mean(axis=0)[:10], 0.1, atol=0.06)


def test_spec_augment_hides_parts_in_training_alone():
    x, places = np.ones((64, 20, 6)), np.arange(10)  # of two frames
    first = np.where(places < 6, 1, 2 * (places > 6))  # recordings of 12 and 6 frames
    segments = np.array([[1] * 10] * 32 + [first] * 32, np.int32)
    positions = np.where(segments == 2, places - 7, places)
    options = SpecAugmentConfig(time_masks=2, longest=0.3, frequency_masks=1, widest=2)
    rows = RowInfo(jnp.asarray(positions), jnp.asarray(segments))
    masked = np.asarray(augmented(x, rows, jax.random.key(0), options))
    assert set(np.unique(masked)) == {0.0, 1.0}
    for row, start, length in ((0, 0, 20), (32, 0, 12), (32, 14, 6)):
        parts = masked[row : row + 32, start : start + length] == 0
        for each in parts:
            times, bands = each.all(axis=1), each.all(axis=0)
            np.testing.assert_array_equal(each, times[:, None] | bands)
            assert times.sum() <= 2 * int(0.3 * length) and bands.sum() <= 2
        assert len({each.tobytes() for each in parts}) > 16
        assert parts.all(axis=2).any(axis=0).all()  # masks reach every frame

    inputs = {"augment": {"time_masks": 1, "longest": 0.5}, "mels": 30}
    model, params = model_of(inputs)
    rows = rows_of(sound(6), 6, 6)
    apply = jax.jit(
        lambda *rows, **rngs: model.apply({"params": params}, *rows, method="read", **rngs)[0]
    )
    plain, again = apply(*rows), apply(*rows)
    np.testing.assert_array_equal(plain, again)
    made = [apply(*rows, rngs={"noise": jax.random.key(seed)}) for seed in (0, 1, 0)]
    assert np.abs(made[0] - plain).max() > 1e-3 and np.abs(made[0] - made[1]).max() > 1e-3
    np.testing.assert_array_equal(made[0], made[2])


def test_a_recording_costs_what_its_parts_cost():
    model, _ = model_of({"subsampling": 4}, ffn=None)
    attention = 4 * 2 * D_MODEL**2 + 4 * D_MODEL * 10  # per place, of ten: projections and pairs
    convolutions = 2 * 3 * (2 * MELS * D_MODEL + D_MODEL**2)
    head = 2 * D_MODEL * VOCAB
    assert flops_per_token(model, 10) == pytest.approx(attention + convolutions + head, rel=1e-12)
    ends = (3 * MELS + 1) * D_MODEL + (3 * D_MODEL + 1) * D_MODEL + D_MODEL * VOCAB
    assert count_parameters(model) == 4 * D_MODEL**2 + 2 * D_MODEL + ends


def test_recordings_that_are_no_whole_number_of_places_are_refused():
    model, params = model_of()
    message = (
        "recordings of 50 samples have 3 places; with model.inputs frames, which has 16 samples "
        "per place, allowed: 48 samples"
    )
    with pytest.raises(ValueError, match=message):
        model.apply({"params": params}, np.zeros((1, 50)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"inputs": FRAMES | {"augment": {"widest": 4}}},
            "inputs.augment.widest is 4, more than inputs.mels 3; give at most that",
        ),
        (
            {"tie_embeddings": True},
            "tie_embeddings is true, but inputs frames have no table of embeddings to share; give "
            "tie_embeddings: false",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changed, message):
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate(MODEL | {"inputs": FRAMES} | changed)


def test_training_draws_a_key_for_masks():
    for augment, keys in ((None, ()), ({"widest": 2}, ("noise",))):
        model = ModelConfig.model_validate(MODEL | {"inputs": FRAMES | {"augment": augment}})
        train = TrainConfig(objective=CTCConfig())
        assert Config.model_construct(model=model, train=train, lora=None).keys == keys
