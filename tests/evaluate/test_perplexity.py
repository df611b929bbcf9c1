import math

import jax
import numpy as np
import pytest
from flax.core import meta

from jaxformer.batch import Batch
from jaxformer.config import Config
from jaxformer.evaluate.perplexity import evaluate, make_eval_step
from jaxformer.model.language_model import build_model
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import batch_sharding
from tests.runs import MODEL

ROWS, LENGTH, VOCAB = 7, 12, 30


@pytest.fixture(scope="module")
def model_and_params():
    model = build_model(Config.model_validate({"model": MODEL}).model, vocab_size=VOCAB)
    params = meta.unbox(
        jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))["params"]
    )
    return model, jax.tree.map(lambda p: 5 * p, params)  # far from uniform


def rows() -> Batch:
    """Seven rows of two documents each, the last one half padding."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCAB, (ROWS, LENGTH + 1)).astype(np.int32)
    cut = random.integers(2, LENGTH - 2, (ROWS, 1))
    column = np.arange(LENGTH, dtype=np.int32)
    segment_ids = np.where(column < cut, 1, 2).astype(np.int32)
    positions = np.where(column < cut, column, column - cut).astype(np.int32)
    mask = column != cut - 1
    batch = Batch(tokens[:, :-1], tokens[:, 1:], positions, segment_ids, mask)
    for array in batch:
        array[-1, LENGTH // 2 :] = 0
    return batch


def batches_of(size: int) -> list[Batch]:
    """The rows in order; the last batch is filled up with padding."""
    missing = -ROWS % size
    padded = Batch(*(np.pad(array, ((0, missing), (0, 0))) for array in rows()))
    return [
        Batch(*(array[start : start + size] for array in padded))
        for start in range(0, ROWS + missing, size)
    ]


def evaluate_in_batches(model_and_params, batches: list[Batch]):
    model, params = model_and_params
    sharding = batch_sharding(make_mesh({}, devices=jax.devices()[:1]))
    step = jax.jit(make_eval_step(model))
    return evaluate(step, params, batches, bytes_per_token=1.5, sharding=sharding)


def test_the_result_is_the_same_for_any_batch_size_and_padding(model_and_params):
    whole = evaluate_in_batches(model_and_params, batches_of(7))
    assert whole.tokens == int(rows().loss_mask.sum())
    for size in (1, 3, 8):
        result = evaluate_in_batches(model_and_params, batches_of(size))
        assert result.tokens == whole.tokens
        assert result.loss == pytest.approx(whole.loss, rel=1e-6)


def test_the_loss_is_the_mean_over_loss_tokens_of_the_logits_cross_entropy(model_and_params):
    model, params = model_and_params
    batch = rows()
    logits = model.apply({"params": params}, batch.inputs, batch.positions, batch.segment_ids)
    log_probability = np.asarray(jax.nn.log_softmax(logits), np.float64)
    token_loss = -np.take_along_axis(log_probability, batch.targets[..., None], axis=-1)[..., 0]
    expected = token_loss[batch.loss_mask].mean()

    result = evaluate_in_batches(model_and_params, batches_of(3))
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert result.figures["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert result.figures["bits_per_byte"] == pytest.approx(expected / math.log(2) / 1.5, rel=1e-6)


def test_nothing_to_evaluate_is_an_error(model_and_params):
    empty = [batch._replace(loss_mask=batch.loss_mask * False) for batch in batches_of(7)]
    with pytest.raises(ValueError, match="no batch has a loss token"):
        evaluate_in_batches(model_and_params, empty)


def test_what_is_raised_between_batches_ends_the_evaluation(model_and_params):
    model, params = model_and_params
    done = []

    def stop_after_two(count: int) -> None:
        done.append(count)
        if count == 2:
            raise KeyboardInterrupt

    sharding = batch_sharding(make_mesh({}, devices=jax.devices()[:1]))
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            jax.jit(make_eval_step(model)),
            params,
            batches_of(1),
            bytes_per_token=1.0,
            sharding=sharding,
            after_batch=stop_after_two,
        )
    assert done == [1, 2]
