"""BERT's masked tokens: which are drawn, what stands for them, and what is predicted."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives.small import MODEL, VOCAB, documents, rows_of

import jaxformer as jf
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from jaxformer.model.inputs import MASK
from jaxformer.objectives import MaskedTokensConfig
from jaxformer.objectives.denoising import noise_of_batch, noise_of_rows
from jaxformer.run import load
from jaxformer.train.run import train
from tests.runs import make_config, results

LENGTH = 12
BATCH = rows_of(LENGTH, documents(6, 5), documents(9, seed=1))  # one place of padding, and three
BERT = {
    **MODEL,
    "order": "full",
    "norm": {"kind": "layer", "placement": "post", "bias": True},
    "positions": {"kind": "learned", "max_length": 16},
    "inputs": {"kind": "typed_tokens"},
    "outputs": {"kind": "transformed"},
    "tie_embeddings": True,
}


def masked(objective: MaskedTokensConfig, batch=BATCH, seed: int = 0) -> tuple[np.ndarray, ...]:
    noise = noise_of_batch(batch, jax.random.key(seed))
    others = jnp.full(batch.inputs.shape, VOCAB - 1, jnp.int32)
    return tuple(map(np.asarray, objective.masked(batch, noise, others)))


def test_first_and_last_tokens_padding_and_what_is_not_in_the_loss_are_never_drawn() -> None:
    batch = BATCH._replace(loss_mask=BATCH.loss_mask.copy())
    batch.loss_mask[1, 3] = False  # whose target is token 4
    *_, drawn = masked(MaskedTokensConfig(rate=1.0), batch)
    expected = np.zeros((2, LENGTH), bool)
    expected[0, 1:5] = expected[0, 7:10] = expected[1, 1:8] = True
    expected[1, 4] = False
    np.testing.assert_array_equal(drawn, expected)


def test_of_the_drawn_ones_most_are_hidden_some_another_and_some_themselves() -> None:
    """Of about 12,000 tokens: each share is within four standard deviations."""
    length = 20_000
    batch = rows_of(length, [np.zeros(length + 1, np.int32)] * 1)
    inputs, targets, *_, drawn = masked(MaskedTokensConfig(rate=0.6), batch)
    count = drawn.sum()
    assert abs(count / length - 0.6) < 4 * (0.24 / length) ** 0.5
    np.testing.assert_array_equal(targets, 0)
    np.testing.assert_array_equal(inputs[~drawn], 0)
    for value, share in ((MASK, 0.8), (VOCAB - 1, 0.1), (0, 0.1)):
        found = (inputs[drawn] == value).mean()
        assert abs(found - share) < 4 * (share * (1 - share) / count) ** 0.5


def test_a_token_of_the_vocabulary_may_stand_for_hidden_ones() -> None:
    inputs, *_, drawn = masked(MaskedTokensConfig(rate=1.0, mask_id=3))
    assert set(inputs[drawn]) <= {3, VOCAB - 1, *BATCH.inputs[drawn]}
    assert (inputs[drawn] == 3).mean() > 0.5


def test_the_loss_is_the_cross_entropy_of_the_drawn_tokens_themselves() -> None:
    objective = MaskedTokensConfig(rate=0.5, mask_id=0)
    model = jf.build_model(ModelConfig.model_validate(BERT), dtype=jnp.float64)
    params = model.init(jax.random.key(0), BATCH.inputs[:1])["params"]
    key = jax.random.key(5)
    found = objective.loss(model, params, BATCH, z_loss=0.0, rngs={"noise": key}, reference=None)
    of_coins, of_others = jax.random.split(key)
    others = jax.random.randint(of_others, BATCH.inputs.shape, 0, VOCAB, jnp.int32)
    inputs, _, *where, drawn = objective.masked(BATCH, noise_of_batch(BATCH, of_coins), others)
    log_probs = jax.nn.log_softmax(model.apply({"params": params}, inputs, *where))
    picked = jnp.take_along_axis(log_probs, BATCH.inputs[..., None], axis=-1)[..., 0]
    assert found.weight == drawn.sum() > 0
    assert found.total == pytest.approx(-float((picked * drawn).sum()), rel=1e-9)


def test_an_evaluation_is_a_function_of_each_row_alone() -> None:
    objective = MaskedTokensConfig(rate=0.5, mask_id=0, eval_draws=2)
    model = jf.build_model(ModelConfig.model_validate(BERT), dtype=jnp.float64)
    params = model.init(jax.random.key(0), BATCH.inputs[:1])["params"]
    evaluate = jax.jit(partial(objective.evaluate, model))
    rows = [documents(6, 3), documents(9, seed=1), documents(4, 4, seed=2)]
    together = evaluate(params, rows_of(LENGTH, *rows)).sums
    again = evaluate(params, rows_of(LENGTH, *rows[::-1])).sums
    assert float(together.loss) == pytest.approx(float(again.loss), rel=1e-12)
    alone = [evaluate(params, rows_of(LENGTH, row)).sums for row in rows]
    assert sum(float(each.loss) for each in alone) == pytest.approx(float(together.loss), rel=1e-9)
    assert sum(float(each.tokens) for each in alone) == float(together.tokens)
    *_, drawn = objective.masked(BATCH, noise_of_rows(BATCH, jnp.int32(1), 2), BATCH.inputs)
    one = noise_of_rows(BATCH, jnp.int32(0), 2)
    first = objective.masked(BATCH, one, BATCH.inputs)[-1]
    assert float(evaluate(params, BATCH).sums.tokens) == float(first.sum() + drawn.sum())


def test_an_encoder_trains_and_gives_vectors_of_texts_but_no_continuations(tmp_path: Path) -> None:
    with jax.enable_x64(False):
        config = make_config(
            tmp_path,
            model={**BERT, "vocab_size": None, "d_model": 16, "init": {"std": 0.02}},
            train={"steps": 30, "objective": {"kind": "masked_tokens", "mask_id": 0}},
            optimizer={"learning_rate": 0.01},
            eval={"every": 10},
        )
        assert train(config) == 0
        losses = [row["eval/loss"] for row in results(tmp_path / "run") if "eval/loss" in row]
        assert losses[-1] < losses[0] - 0.1
        assert 0 <= results(tmp_path / "run")[-1]["eval/accuracy"] <= 1
        assert not (tmp_path / "run/samples.txt").exists()
        run = load(tmp_path / "run")
        vectors = run.embed(["abcd", "hgfe dcba", "abcd"])
        assert vectors.shape == (3, 16)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
        np.testing.assert_array_equal(vectors[0], vectors[2])
        np.testing.assert_allclose(run.embed(["abcd"])[0], vectors[0], atol=1e-6)
        with pytest.raises(UserError, match="masked_tokens, which continues no text"):
            run.generate("abcd")
        with pytest.raises(UserError, match=r"a text has 22 tokens, but .* max_length 16"):
            run.embed(["a" * 20])
        with pytest.raises(UserError, match="give at least one"):
            run.embed([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "model.inputs.mask is false"),
        ({"mask_id": VOCAB}, "mask_id is 7, but model.vocab_size is 7"),
    ],
)
def test_a_model_needs_something_that_stands_for_hidden_tokens(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedTokensConfig(**options).check(ModelConfig.model_validate(BERT))
