"""Classification against its definition, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from jaxformer.batch import Batch
from jaxformer.config import Config
from jaxformer.objectives import ClassesConfig
from jaxformer.objectives.classes import Mixed, outside_box
from tests.model.test_patches import CLASSES, MODEL, PICTURES, PLACES, model_of, pictures


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


TARGETS = np.array([[1], [3], [0], [2]], np.int32)


def batch_of(rows: int = 4) -> Batch:
    """Four pictures, of which the last ones only fill up the batch."""
    there = np.arange(4) < rows
    shape = (4, PLACES)
    positions = np.broadcast_to(np.arange(PLACES, dtype=np.int32), shape)
    segment_ids = np.broadcast_to(there[:, None], shape).astype(np.int32)
    return Batch(pictures(4), TARGETS, positions, segment_ids, there[:, None])


def loss_of(objective: ClassesConfig, batch: Batch, **more: object) -> dict[str, float]:
    model, params = model_of()
    rngs = {"noise": jax.random.key(3)} if objective.keys else {}
    options = {"z_loss": 0.0, "rngs": rngs, "reference": None} | more
    found = objective.loss(model, params, batch, **options)
    means = {name: float(x / found.weight) for name, x in found.sums.items()}
    return means | {"total": float(found.total / found.weight), "weight": float(found.weight)}


def log_probs_of(images: np.ndarray) -> np.ndarray:
    model, params = model_of()
    return np.asarray(jax.nn.log_softmax(model.apply({"params": params}, images)))


def test_the_loss_is_cross_entropy_smoothed_over_all_classes():
    batch, log_probs = batch_of(3), log_probs_of(pictures(4))[:3]
    cross = -np.mean(log_probs[np.arange(3), TARGETS[:3, 0]])
    spread = -np.mean(log_probs)
    found = loss_of(ClassesConfig(label_smoothing=0.3), batch)
    assert found["weight"] == 3
    assert found["loss"] == pytest.approx(cross, rel=1e-12)
    assert found["total"] == pytest.approx(0.7 * cross + 0.3 * spread, rel=1e-12)
    assert found["accuracy"] == pytest.approx(np.mean(log_probs.argmax(1) == TARGETS[:3, 0]))


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0}], ids=str)
def test_mixed_pictures_are_the_shares_that_their_classes_count(options):
    objective, batch = ClassesConfig(**options), batch_of()
    rows = Mixed(jnp.asarray(batch.inputs), jnp.asarray(TARGETS[:, 0]), jnp.ones(4))
    mixed = objective._mixed(rows, jax.random.key(3))
    np.testing.assert_array_equal(mixed.other, np.roll(TARGETS[:, 0], 1))
    own, other = batch.inputs.astype(float), np.roll(batch.inputs, 1, axis=0).astype(float)
    for row, share in enumerate(np.asarray(mixed.share)):
        if "mixup" in options:
            expected = share * own[row] + (1 - share) * other[row]
            np.testing.assert_allclose(mixed.inputs[row], expected, rtol=1e-5)
        else:
            made = np.asarray(mixed.inputs[row])
            kept = (made == own[row]).all(-1)
            taken = (made == other[row]).all(-1)
            assert (kept | taken).all()
            assert share == pytest.approx(np.mean(kept), abs=1e-6)
    log_probs = log_probs_of(mixed.inputs)
    first, second = (log_probs[np.arange(4), each] for each in (TARGETS[:, 0], mixed.other))
    expected = -np.mean(mixed.share * first + (1 - mixed.share) * second)
    assert loss_of(objective, batch)["loss"] == pytest.approx(float(expected), rel=1e-6)


def test_boxes_have_the_area_of_their_share_where_they_fit():
    outside = outside_box(jax.random.key(0), 1.0, 2000, 64, 32)
    assert set(np.unique(outside)) == {0.0, 1.0}
    filled = 1 - np.asarray(outside)
    # Half of a box at a random place lies inside along each axis, on average for a small one; and
    # with Beta(1, 1) the whole boxes' mean area is a half.
    assert 0.25 < filled.mean() < 0.5
    for box in filled[:20]:
        rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
        assert box.sum() == len(rows) * len(columns)  # one rectangle


def test_with_mixup_and_cutmix_each_picture_gets_one_of_them():
    objective = ClassesConfig(mixup=0.4, cutmix=1.0)
    images = np.zeros((64, 4, 4, 1), np.uint8)
    images[::2] = 255
    rows = Mixed(jnp.asarray(images), jnp.zeros(64, int), jnp.ones(64))
    mixed = np.asarray(objective._mixed(rows, jax.random.key(0)).inputs)
    is_blend = np.array([len(np.unique(each)) == 1 and 0 < each.max() < 255 for each in mixed])
    is_box = np.isin(mixed, (0, 255)).all(axis=(1, 2, 3))
    assert (is_blend | is_box).all()
    assert 16 < is_blend.sum() < 48


def test_an_evaluation_counts_targets_among_the_likeliest():
    model, params = model_of()
    evaluate = jax.jit(partial(ClassesConfig(label_smoothing=0.1, mixup=1.0).evaluate, model))
    found = evaluate(params, batch_of(3))
    log_probs = log_probs_of(pictures(4))[:3]
    own = log_probs[np.arange(3), TARGETS[:3, 0]]
    assert float(found.sums.loss) == pytest.approx(-own.sum(), rel=1e-12)
    assert float(found.sums.tokens) == 3
    assert float(found.figures["accuracy"]) == np.sum(own >= log_probs.max(axis=1))
    assert float(found.figures["top5_accuracy"]) == 3 and CLASSES <= 5


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"train": {}, "model": {"order": "causal"}},
            "model.outputs classes gives every row one output, but train.objective next_token "
            "needs one per token; give train.objective={kind: classes}",
        ),
        (
            {"model": {"outputs": {"kind": "linear"}, "inputs": {"kind": "tokens"}}},
            "train.objective is classes, but model.outputs linear gives every token an output; "
            "give model.outputs={kind: classes}",
        ),
        (
            {
                "train": {},
                "model": {"outputs": {"kind": "linear"}, "inputs": {"kind": "tokens"}},
            },
            "model.order is full, where tokens see those behind them, but train.objective "
            "next_token predicts these; give model.order=causal",
        ),
    ],
)
def test_models_and_objectives_that_do_not_fit_are_refused(sections, message):
    images = {"size": PICTURES["size"], "channels": 1}
    data = {"kind": "images", "source": "imagefolder:here", "images": images}
    given = {
        "model": MODEL | {"inputs": PICTURES | {"channels": 1, "mean": [0.5], "std": [0.5]}},
        "data": data | {"sequence_length": PLACES},
        "train": {"objective": {"kind": "classes"}},
    }
    if "inputs" in sections.get("model", {}):
        given["data"] = {}
    model = given["model"] | sections.get("model", {})
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(given | sections | {"model": model})
