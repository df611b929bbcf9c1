"""Hidden patches and frames: which are hidden, what stands for them, and what is predicted."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from jaxformer.batch import Batch
from jaxformer.config import Config
from jaxformer.model.config import ModelConfig
from jaxformer.model.inputs import Masked
from jaxformer.objectives import MaskedFramesConfig, MaskedPatchesConfig
from jaxformer.objectives.denoising import noise_of_batch, noise_of_rows
from jaxformer.ops.spectrogram import log_mels
from tests.model import test_frames as frames
from tests.model import test_patches as patches

REGRESSION = {"outputs": {"kind": "regression"}}
PIXELS = patches.PATCH**2 * 2  # of a patch
STEMMED = {"size": [8, 12], "patch": 4, "stem": [3], "mask": True, "class_token": True}


def batch_of(images: np.ndarray, length: int, *, there: int | None = None) -> Batch:
    """Pictures of so many patches, of which the last ones only fill up the batch."""
    shape, rows = (len(images), length), np.arange(len(images))
    real = rows < (len(images) if there is None else there)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
    segment_ids = np.broadcast_to(real[:, None], shape).astype(np.int32)
    return Batch(
        images, np.zeros((len(images), 1), np.int32), positions, segment_ids, real[:, None]
    )


def test_a_share_of_the_blocks_is_hidden_whole_and_nothing_of_what_fills_up_a_batch() -> None:
    """Of 5 × 6 patches in blocks of 2 × 2, nine with those that the lower edge cuts."""
    inputs = patches.PICTURES | {"size": [15, 18], "mask": True}
    model, _ = patches.model_of(inputs, **REGRESSION)
    batch = batch_of(np.zeros((65, 15, 18, 2), np.uint8), 30, there=64)
    coins = jax.random.uniform(jax.random.key(0), (65, 30))
    hidden = np.asarray(MaskedPatchesConfig(rate=0.4, block=2).hidden(model, batch, coins))
    assert not hidden[64].any()
    corners = hidden.reshape(65, 5, 6)[:64, ::2, ::2]
    whole = np.repeat(np.repeat(corners, 2, axis=1), 2, axis=2)[:, :5]
    np.testing.assert_array_equal(hidden[:64].reshape(64, 5, 6), whole)
    assert (corners.sum(axis=(1, 2)) == 4).all()  # 0.4 · 9 = 3.6
    assert len(np.unique(hidden[:64], axis=0)) > 32
    assert whole.any(axis=0).all() and not whole.all(axis=0).any()


def test_of_recordings_the_share_is_of_what_holds_sound() -> None:
    model, _ = frames.model_of({"mask": True}, **REGRESSION)
    rows = frames.rows_of(frames.sound(7, rows=3), 7, 4, 1)
    batch = Batch(rows[0], np.zeros((3, 1)), *rows[1:], np.zeros((3, 1), bool))
    for seed in range(4):
        coins = jax.random.uniform(jax.random.key(seed), (3, 7))
        hidden = MaskedFramesConfig(rate=0.5, block=2).hidden(model, batch, coins)
        pairs = np.pad(np.asarray(hidden), [(0, 0), (0, 1)]).reshape(3, 4, 2)
        assert pairs.any(axis=2).sum(axis=1).tolist() == [2, 1, 1]  # of four, two and one
        assert not hidden[1, 4:].any() and not hidden[2, 1:].any()


def test_the_loss_is_the_squared_error_of_hidden_patches_alone() -> None:
    """Of pictures of which one is of one colour, and a third fills up the batch."""
    model, params = patches.model_of({"mask": True, "class_token": True}, **REGRESSION)
    images = patches.pictures(3)
    images[1] = 100
    batch = batch_of(images, patches.PLACES, there=2)
    objective, key = MaskedPatchesConfig(rate=0.5), jax.random.key(5)
    loss = partial(objective.loss, z_loss=0.0, rngs={"noise": key}, reference=None)
    found = jax.jit(partial(loss, model))(params, batch)
    hidden = np.asarray(objective.hidden(model, batch, noise_of_batch(batch, key).coins))
    predicted = np.asarray(model.apply({"params": params}, Masked(images, hidden)))[:, 1:]
    total = 0.0
    for row, place in np.argwhere(hidden):
        down, across = divmod(place, patches.WIDTH // patches.PATCH)
        x = images[row, 3 * down : 3 * down + 3, 3 * across : 3 * across + 3].reshape(-1) / 255.0
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
        total += np.mean((predicted[row, place] - x) ** 2)
    assert float(found.weight) == hidden.sum() == 2 * patches.PLACES / 2
    assert float(found.total) == float(found.sums["loss"]) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("inputs", [{"mask": True}, STEMMED], ids=["patches", "stem"])
def test_hidden_pixels_leave_no_trace(inputs: dict) -> None:
    model, params = patches.model_of(inputs, **REGRESSION)
    height, width = model.config.inputs.size
    side = model.config.inputs.patch
    images = np.random.default_rng(0).integers(0, 256, (1, height, width, 2)).astype(np.uint8)
    hidden = np.array([[True, False, False, True, False, True]])
    over_pixels = np.kron(hidden.reshape(height // side, width // side), np.ones((side, side), int))
    other = np.where(over_pixels[..., None], 255 - images, images)
    apply = jax.jit(model.apply)
    found, expected = (apply({"params": params}, Masked(x, hidden)) for x in (other, images))
    np.testing.assert_array_equal(found, expected)
    seen = np.where(over_pixels[..., None], images, 255 - images)
    assert np.abs(apply({"params": params}, Masked(seen, hidden)) - expected).max() > 1e-3


def test_a_learned_vector_stands_for_hidden_frames_and_their_neighbours_hear_zeros() -> None:
    model, params = frames.model_of({"mask": True}, **REGRESSION)
    waveform, hidden = frames.sound(4, rows=1), np.array([[False, True, False, False]])

    def embed(model: object) -> jax.Array:
        rows = model.inputs.rows_of(waveform)
        return model.inputs.embed(Masked(jnp.asarray(waveform), hidden), rows)

    found = np.asarray(model.apply({"params": params}, method=embed))[0]
    np.testing.assert_array_equal(found[1], params["mask_embedding"])
    options = {"window": frames.WINDOW, "hop": frames.HOP, "mels": frames.MELS, "scale": "slaney"}
    logs = np.asarray(log_mels(waveform, sample_rate=400, **options))[0]
    standard = (logs - logs.mean(0)) / np.sqrt(logs.var(0) + 1e-5)
    first = frames.convolved(params, np.where(np.arange(8)[:, None] // 2 == 1, 0, standard), (1,))
    between = np.where(np.arange(8)[:, None] // 2 == 1, 0, first)
    renamed = {"convolution_1": params["convolution_2"]}
    expected = frames.convolved(renamed, between, (2,))
    np.testing.assert_allclose(found[[0, 2, 3]], expected[[0, 2, 3]], rtol=0, atol=1e-12)


def test_the_frames_of_each_recording_of_a_row_are_predicted_standardised() -> None:
    model, params = frames.model_of({"mask": True}, **REGRESSION)
    waveform, segments = frames.sound(6, rows=1), np.array([[1, 1, 1, 0, 2, 2]], np.int32)
    positions = np.array([[0, 1, 2, 0, 0, 1]], np.int32)
    batch = Batch(waveform, np.zeros((1, 1)), positions, segments, np.zeros((1, 1), bool))
    objective, key = MaskedFramesConfig(rate=0.5, block=1), jax.random.key(1)
    loss = partial(objective.loss, z_loss=0.0, rngs={"noise": key}, reference=None)
    found = jax.jit(partial(loss, model))(params, batch)
    hidden = np.asarray(objective.hidden(model, batch, noise_of_batch(batch, key).coins))
    rows = (positions, segments)
    predicted, _ = model.apply(
        {"params": params}, Masked(waveform, hidden), *rows, method="regress"
    )
    options = {"window": frames.WINDOW, "hop": frames.HOP, "mels": frames.MELS, "scale": "slaney"}
    standard = np.zeros((6, 2 * frames.MELS))
    for number in (1, 2):
        own = segments[0] == number
        alone = waveform.reshape(6, -1)[own].reshape(1, -1)
        logs = np.asarray(log_mels(alone, sample_rate=400, **options))[0]
        standard[own] = ((logs - logs.mean(0)) / np.sqrt(logs.var(0) + 1e-5)).reshape(own.sum(), -1)
    expected = ((np.asarray(predicted)[0] - standard) ** 2).mean(-1)[hidden[0]].sum()
    assert hidden.sum() == float(found.weight) == 2 and not hidden[0, 3]  # 0.5 · 5, to even
    assert float(found.total) == pytest.approx(expected, rel=1e-9)


def test_an_evaluation_is_a_function_of_each_picture_alone() -> None:
    model, params = patches.model_of({"mask": True}, **REGRESSION)
    objective = MaskedPatchesConfig(eval_draws=2)
    evaluate = jax.jit(partial(objective.evaluate, model))
    images = patches.pictures(3)
    together = evaluate(params, batch_of(images, patches.PLACES))
    again = evaluate(params, batch_of(images[::-1].copy(), patches.PLACES, there=2))
    last = evaluate(params, batch_of(images[[0, 0, 0]], patches.PLACES, there=1))
    for name in ("loss", "tokens"):
        parts = [float(getattr(each.sums, name)) for each in (again, last)]
        assert sum(parts) == pytest.approx(float(getattr(together.sums, name)), rel=1e-12)
    batch = batch_of(images, patches.PLACES)
    draws = [noise_of_rows(batch, jnp.int32(draw), 2).coins for draw in range(2)]
    hidden = np.stack([objective.hidden(model, batch, coins) for coins in draws])
    assert float(together.sums.tokens) == hidden.sum() == 2 * 3 * 4  # 0.6 · 6 = 3.6
    assert len(np.unique(hidden.reshape(6, -1), axis=0)) > 3
    assert float(together.figures["variance"]) == pytest.approx(24, rel=1e-3)  # 1 each


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs": {"mask": False}}, "which hides patches, but model.inputs.mask is false; give"),
        ({"outputs": {"kind": "classes"}}, "which predicts numbers, but model.outputs is classes;"),
        (
            {"order": "causal"},
            "model.order is causal, but train.objective masked_patches predicts from both",
        ),
        (
            {"objective": "masked_frames"},
            "masked_frames, but model.inputs is patches; allowed: fra",
        ),
        (
            {"objective": "classes"},
            "classes, but model.outputs regression gives every token an out",
        ),
        (
            {"objective": "next_token", "order": "causal"},
            "regression predicts what stands at hidden places, but train",
        ),
        ({"z_loss": 0.1}, "z_loss is 0.1, but train.objective masked_patches has no logits"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict, message: str) -> None:
    images = {"size": patches.PICTURES["size"], "channels": 1}
    grey = {"channels": 1, "mean": [0.5], "std": [0.5], "mask": True}
    inputs = patches.PICTURES | grey | changed.get("inputs", {})
    kind, z_loss = changed.get("objective", "masked_patches"), changed.get("z_loss", 0.0)
    model = {key: changed[key] for key in ("order", "outputs") if key in changed}
    data = {"kind": "images", "source": "imagefolder:here", "images": images}
    given = {
        "model": patches.MODEL | REGRESSION | {"inputs": inputs} | model,
        "data": data | {"sequence_length": patches.PLACES},
        "train": {"objective": {"kind": kind}, "z_loss": z_loss},
    }
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(given)


def test_numbers_are_predicted_of_pictures_and_spectrograms_alone() -> None:
    for inputs in ({"kind": "tokens"}, {"kind": "raw"}):
        message = f"outputs are regression, but at a place of inputs {inputs['kind']} stand no num"
        with pytest.raises(ValidationError, match=message):
            ModelConfig.model_validate(frames.MODEL | REGRESSION | {"inputs": inputs})
    with pytest.raises(
        ValidationError, match="inputs.mask is true, but waveforms are never hidden"
    ):
        ModelConfig.model_validate(frames.MODEL | {"inputs": {"kind": "raw", "mask": True}})
