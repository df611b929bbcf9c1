"""CTC against the sum over all alignments, in float64."""

from functools import partial
from itertools import groupby, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.batch import Batch
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel
from jaxformer.objectives import CTCConfig, ctc
from jaxformer.objectives.ctc import fit, numbers_of
from jaxformer.ops.ctc import ctc_loss
from tests.model.test_frames import FRAMES, HOP, MODEL, VOCAB, logits_of, model_of, rows_of, sound
from tests.ops.test_edit_distance import defined as edits

FRAMES_OF_ROW = 5


def merged(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(label for label, _ in groupby(path) if label != blank)


def defined(logits: jax.Array, labels: tuple[int, ...], blank: int) -> jax.Array:
    """−log Σ p(path) over every path that gives the labels."""
    frames, vocab = logits.shape
    paths = [path for path in product(range(vocab), repeat=frames) if merged(path, blank) == labels]
    log_probs = jax.nn.log_softmax(logits)[jnp.arange(frames), jnp.array(paths)]
    return -jax.nn.logsumexp(log_probs.sum(axis=1))


@pytest.mark.parametrize("labels", [(), (1,), (0, 0), (1, 2, 1), (2, 2, 0), (0, 1, 2, 0)])
@pytest.mark.parametrize("blank", [3, 1])
def test_the_loss_and_its_gradient_are_those_of_all_alignments(labels, blank):
    labels = tuple(label + (label >= blank) for label in labels)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(FRAMES_OF_ROW + 2, 4)))
    padded = np.array([*labels, *[0] * (5 - len(labels))], np.int32)
    recordings = (np.arange(FRAMES_OF_ROW + 2) < FRAMES_OF_ROW).astype(np.int32)
    numbers = (np.arange(5) < len(labels)).astype(np.int32)

    def found(logits: jax.Array) -> jax.Array:
        return ctc_loss(logits, recordings, padded, numbers, blank)

    def expected(logits: jax.Array) -> jax.Array:
        return defined(logits[:FRAMES_OF_ROW], labels, blank)

    (loss, gradient), (sums, of_sums) = (
        jax.jit(jax.value_and_grad(each))(logits) for each in (found, expected)
    )
    np.testing.assert_allclose(loss, sums, rtol=1e-12)
    np.testing.assert_allclose(gradient, of_sums, rtol=0, atol=1e-12)


def test_a_row_of_several_recordings_has_the_loss_of_each_alone():
    """Of which one is empty, and one begins with the label that ends the one before."""
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(11, 4)))
    recordings = np.array([1, 1, 1, 0, 2, 2, 0, 3, 4, 4, 4], np.int32)
    said = {1: (0, 1), 2: (1,), 3: (), 4: (2, 2)}
    labels = np.array([0, 1, 9, 1, 9, 9, 2, 2], np.int32)
    numbers = numbers_of(labels[None] != 9)[0]
    assert numbers.tolist() == [1, 1, 0, 2, 0, 0, 4, 4]

    def found(logits: jax.Array) -> jax.Array:
        return ctc_loss(logits, recordings, labels, numbers, 3)

    def expected(logits: jax.Array) -> jax.Array:
        return sum(defined(logits[recordings == each], said[each], 3) for each in said)

    (loss, gradient), (sums, of_sums) = (
        jax.jit(jax.value_and_grad(each))(logits) for each in (found, expected)
    )
    np.testing.assert_allclose(loss, sums, rtol=1e-12)
    np.testing.assert_allclose(gradient, of_sums, rtol=0, atol=1e-12)


def batch_of() -> Batch:
    """Recordings of five, five and four places, of which the second's labels are too many with the
    blank between them, and a row that fills up the batch."""
    waveform = sound(FRAMES_OF_ROW, rows=4)
    labels = [(1, 2, 1), (1, 1, 1, 2), (0,), ()]
    targets, mask = np.zeros((4, 5), np.int32), np.zeros((4, 5), bool)
    for row, given in enumerate(labels):
        targets[row, : len(given)], mask[row, : len(given)] = given, True
    waveform, positions, segment_ids = rows_of(waveform, 5, 5, 4, 0)
    return Batch(waveform, targets, positions, segment_ids, mask)


def losses_of(params: dict, blank: int = VOCAB - 1) -> jax.Array:
    """Of the first and third recording."""
    model, _ = model_of()
    batch = batch_of()
    rows = (batch.inputs, batch.positions, batch.segment_ids)
    logits = model.apply({"params": params}, *rows)
    return defined(logits[0], (1, 2, 1), blank) + defined(logits[2, :4], (0,), blank)


def total_of(
    params: dict, z_loss: float = 0.0, batch: Batch | None = None, **options: int
) -> tuple[jax.Array, object]:
    model, _ = model_of()
    found = CTCConfig(**options).loss(
        model, params, batch or batch_of(), z_loss=z_loss, rngs={}, reference=None
    )
    return found.total, found


@pytest.mark.parametrize("at_once", [2**28, 1])
def test_what_does_not_fit_is_counted_and_left_out(at_once, monkeypatch):
    monkeypatch.setattr(ctc, "BYTES_AT_ONCE", at_once)
    _, params = model_of()
    (total, found), gradient = jax.jit(jax.value_and_grad(total_of, has_aux=True))(params)
    expected, of_sum = jax.jit(jax.value_and_grad(losses_of))(params)
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    assert float(found.weight) == 4
    assert float(found.sums["loss"]) == float(total)
    assert [float(part) for part in found.means["too_long"]] == [1, 3]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), gradient, of_sum
    )


def test_packed_recordings_are_trained_on_as_each_alone():
    _, params = model_of()
    alone, shape = batch_of(), (1, 5 + 1 + 5 + 1 + 4)
    waveform, targets = np.ones((1, shape[1] * 2 * HOP)), np.zeros(shape, np.int32)
    positions, segment_ids, mask = targets.copy(), targets.copy(), np.zeros(shape, bool)
    place = label = 0
    for row, count in enumerate((5, 5, 4)):
        samples, said = 2 * HOP * count, alone.targets[row][alone.loss_mask[row]]
        waveform[0, 2 * HOP * place :][:samples] = alone.inputs[row, :samples]
        positions[0, place : place + count] = np.arange(count)
        segment_ids[0, place : place + count] = row + 1
        targets[0, label : label + len(said)], mask[0, label : label + len(said)] = said, True
        place, label = place + count + 1, label + len(said) + 1
    packed = Batch(waveform, targets, positions, segment_ids, mask)
    found = total_of(params, z_loss=0.1, batch=packed)[1]
    expected = total_of(params, z_loss=0.1)[1]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10), found, expected)


def test_z_loss_is_of_all_frames_with_a_loss():
    model, params = model_of()
    batch = batch_of()
    logits = logits_of(model, params, batch.inputs, batch.positions, batch.segment_ids)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    squares = np.sum(log_z[0] ** 2) + np.sum(log_z[2, :4] ** 2)
    total, found = jax.jit(partial(total_of, z_loss=0.1))(params)
    assert float(found.sums["z_loss"]) == pytest.approx(0.1 * float(squares), rel=1e-12)
    assert float(total) == pytest.approx(float(found.sums["loss"] + found.sums["z_loss"]))


def test_the_blank_is_the_last_id_with_a_probability_or_the_one_named():
    model, params = model_of()
    expected = jax.jit(losses_of, static_argnums=1)(params, 3)
    found, _ = jax.jit(partial(total_of, blank=3))(params)
    assert float(found) == pytest.approx(float(expected), rel=1e-12)
    padded = model.clone(num_tokens=4)

    def total(model: LanguageModel, params: dict) -> jax.Array:
        loss = CTCConfig().loss
        return loss(model, params, batch_of(), z_loss=0.0, rngs={}, reference=None).total

    cut = params | {"head": params["head"][:, :4]}
    alone = model.clone(vocab_size=4)
    assert CTCConfig().blank_of(padded) == 3
    found, expected = (
        jax.jit(total, static_argnums=0)(padded, params),
        jax.jit(total, static_argnums=0)(alone, cut),
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


def test_an_evaluation_counts_the_edits_of_the_likeliest_path():
    model, params = model_of()
    batch = batch_of()
    found = jax.jit(lambda params, batch: CTCConfig().evaluate(model, params, batch))(params, batch)
    assert float(found.sums.loss) == pytest.approx(float(losses_of(params)), rel=1e-12)
    assert float(found.sums.tokens) == 4
    logits = logits_of(model, params, batch.inputs, batch.positions, batch.segment_ids)
    path = np.argmax(logits, axis=-1)
    said = [merged(tuple(path[0]), VOCAB - 1), merged(tuple(path[2, :4]), VOCAB - 1)]
    expected = edits(said[0], (1, 2, 1)) + edits(said[1], (0,))
    assert float(found.figures["label_error_rate"]) == expected


def test_labels_fit_with_a_blank_between_equal_ones():
    labels = np.array([[1, 1, 2], [1, 1, 2], [1, 2, 2], [0, 0, 0]])
    mask = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0], [0, 1, 0]], bool)
    segment_ids = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 2, 0]], np.int32)
    fits = fit(Batch(None, labels, None, segment_ids, mask))
    assert fits[:, 1].tolist() == [True, False, True, True]
    assert fits[3, 2]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"inputs": {"kind": "tokens"}},
            "train.objective is ctc, which reads recordings, but model.inputs is tokens; give "
            "model.inputs={kind: frames}",
        ),
        (
            {"outputs": {"kind": "classes"}},
            "train.objective is ctc, which gives every frame a label, but model.outputs is "
            "classes; give model.outputs={kind: linear}",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(model, message):
    config = ModelConfig.model_validate(MODEL | {"inputs": FRAMES} | model)
    with pytest.raises(ValueError, match=message):
        CTCConfig().check(config)


def test_a_blank_beyond_the_last_id_is_refused():
    model, _ = model_of()
    message = "blank is 5, but the model's ids end with 4; allowed: 0 to 4, or null"
    with pytest.raises(UserError, match=message):
        CTCConfig(blank=5).blank_of(model)


def test_models_of_both_orders_can_be_trained():
    for order in ("full", "causal"):
        config = ModelConfig.model_validate(MODEL | {"inputs": FRAMES, "order": order})
        CTCConfig().check(config)
        assert order in CTCConfig.orders
