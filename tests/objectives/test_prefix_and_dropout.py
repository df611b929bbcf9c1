"""Prefix language models, and the control that hides tokens from a causal model."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from objectives.small import MODEL, documents, model_of, rows_of

from jaxformer.model.config import ModelConfig
from jaxformer.model.inputs import MASK
from jaxformer.model.language_model import build_model
from jaxformer.objectives import NextTokenConfig, PrefixConfig, TokenDropoutConfig
from jaxformer.objectives.denoising import noise_of_batch
from jaxformer.objectives.prefix import prefix_lengths
from jaxformer.ops.attention import Tokens, Visibility

BATCH = rows_of(10, documents(6, 3), documents(4, 5, seed=1))


class Recorder:
    """Stands for a model, and keeps what its loss is asked."""

    def apply(self, variables, *rows, **options):
        self.rows, self.options = rows, options
        raise StopIteration


def asked(objective, key: int = 0) -> Recorder:
    recorder = Recorder()
    options = {"z_loss": 0.0, "rngs": {"noise": jax.random.key(key)}, "reference": None}
    with pytest.raises(StopIteration):
        objective.loss(recorder, {}, BATCH, **options)
    return recorder


def test_prefixes_of_all_lengths_are_equally_likely():
    batch = rows_of(10, documents(6, 3))
    counts = np.zeros((2, 7), int)
    for share in (np.arange(60) + 0.5) / 60:
        found = prefix_lengths(batch, np.full((1, 10), share, np.float32))[0]
        assert len(set(found[:6].tolist())) == len(set(found[6:9].tolist())) == 1
        counts[0, found[0]] += 1
        counts[1, found[6]] += 1
    assert counts.tolist() == [[0] + [10] * 6, [0, 20, 20, 20, 0, 0, 0]]


def test_a_prefix_sees_itself_and_its_last_token_is_the_first_to_be_in_the_loss():
    recorder = asked(PrefixConfig())
    shares = jax.random.uniform(jax.random.key(0), BATCH.inputs.shape, jnp.float32)
    prefix = np.asarray(prefix_lengths(BATCH, shares))
    *_, positions, segment_ids, loss_mask = recorder.rows
    tokens = Tokens(np.arange(10)[None], positions, segment_ids, recorder.options["order"])
    seen = np.asarray(Visibility().mask(tokens, tokens))
    assert prefix.max() > 1 and len(np.unique(prefix)) > 2
    for row, query, key in np.ndindex(2, 10, 10):
        same = segment_ids[row, query] == segment_ids[row, key]
        in_prefix = positions[row, key] < prefix[row, key]
        if segment_ids[row, query]:
            assert seen[row, query, key] == (same and (key <= query or in_prefix))
    expected = (positions + 1 >= prefix) & BATCH.loss_mask
    np.testing.assert_array_equal(loss_mask, expected)


def test_a_prefix_of_one_token_is_autoregression():
    """Documents of one target have no longer prefix."""
    model, params = model_of()
    batch = rows_of(10, documents(1, 1, 1), documents(1, seed=1))
    rngs = {"noise": jax.random.key(0)}
    losses = [
        objective.loss(model, params, batch, z_loss=0.0, rngs=rngs, reference=None)
        for objective in (PrefixConfig(), NextTokenConfig())
    ]
    assert losses[0].total == pytest.approx(float(losses[1].total), rel=1e-12)


def test_evaluations_of_a_prefix_and_of_dropout_are_the_next_tokens():
    model, params = model_of()
    expected = jax.jit(partial(NextTokenConfig().evaluate, model))(params, BATCH).sums
    for objective in (PrefixConfig(), TokenDropoutConfig()):
        assert not objective.is_bound and objective.is_causal
        found = jax.jit(partial(objective.evaluate, model))(params, BATCH).sums
        assert found.loss == expected.loss


def test_dropout_hides_inputs_at_the_rate_of_their_row_and_no_first_token():
    hidden = np.zeros((2, 10))
    count = 300
    for key in range(count):
        inputs, targets, *_, loss_mask = asked(TokenDropoutConfig(rate=0.8), key).rows
        np.testing.assert_array_equal(targets, BATCH.targets)
        np.testing.assert_array_equal(loss_mask, BATCH.loss_mask)
        is_hidden = np.asarray(inputs) == MASK
        np.testing.assert_array_equal(inputs[~is_hidden], BATCH.inputs[~is_hidden])
        hidden += is_hidden
        rates = 0.8 * noise_of_batch(BATCH, jax.random.key(key)).offsets
        assert np.all(rates < 0.8)
    assert np.all(hidden[BATCH.positions == 0] == 0)
    inside = hidden[BATCH.positions > 0] / count
    assert abs(inside.mean() - 0.4) < 0.03  # half of the highest rate


def test_dropout_trains_a_recurrent_mixer():
    mixer = {"kind": "gated_delta", "num_heads": 2}
    config = ModelConfig.model_validate(MODEL | {"mixer": mixer, "num_layers": 1})
    TokenDropoutConfig().check(config)
    model = build_model(config)
    params = meta.unbox(jax.jit(model.init)(jax.random.key(0), BATCH.inputs)["params"])

    @jax.jit
    def gradients(params: dict) -> dict:
        def total(params: dict) -> jax.Array:
            rngs = {"noise": jax.random.key(0)}
            options = {"z_loss": 0.0, "rngs": rngs, "reference": None}
            return TokenDropoutConfig(rate=1.0).loss(model, params, BATCH, **options).total

        return jax.grad(total)(params)

    assert jnp.abs(gradients(params)["mask_embedding"]).max() > 0
