"""The step with a stand-in model: a table of logits, one row a token."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta

from jaxformer.batch import Batch
from jaxformer.config import AdamWConfig, Config
from jaxformer.model.accounting import abstract_parameters
from jaxformer.model.language_model import build_model
from jaxformer.model.rows import LayerAux
from jaxformer.objectives import Loss, NextTokenConfig
from jaxformer.parallel.rules import logical_axes
from jaxformer.train.optimizer import make_optimizer
from jaxformer.train.step import StepOptions, TrainState, init_state, make_train_step
from tests.runs import MODEL

VOCAB, ROWS, LENGTH = 7, 8, 5


def bigram_loss(params, batch: Batch, z_weight: float = 0.0) -> Loss:
    logits = params["table"][batch.inputs]  # [rows, length, vocab]
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, batch.targets[..., None], axis=-1)[..., 0]
    mask = batch.loss_mask
    loss = jnp.sum((normaliser - target) * mask)
    z_loss = z_weight * jnp.sum(normaliser**2 * mask)
    sums = {"loss": loss} | ({"z_loss": z_loss} if z_weight else {})
    return Loss(loss + z_loss, jnp.sum(mask).astype(logits.dtype), sums, LayerAux({}))


def make_batch(seed: int = 0, rows: int = ROWS) -> Batch:
    """Rows with very different numbers of loss tokens."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, VOCAB, (rows, LENGTH + 1)).astype(np.int32)
    counts = random.integers(0, LENGTH + 1, (rows, 1))
    counts[0] = LENGTH
    mask = np.arange(LENGTH) < counts
    ones = np.ones((rows, LENGTH), np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:], ones, ones, mask)


def make_params(dtype=jnp.float32):
    return {"table": jnp.asarray(np.random.default_rng(1).normal(size=(VOCAB, VOCAB)), dtype)}


def build(optimizer=None, schedule=lambda step: 1.0, loss=bigram_loss, **options):
    optimizer = optimizer or optax.sgd(1.0)

    def loss_of(params, reference, batch, rngs):
        return loss(params, batch)

    step = make_train_step(loss_of, optimizer, schedule, StepOptions(1.0, **options))
    return jax.jit(step), optimizer


def run(state_params, batch, **options) -> tuple[TrainState, dict]:
    step, optimizer = build(**options)
    return step(init_state(state_params, optimizer, options.get("ema_decay")), batch)


@pytest.mark.parametrize("accumulation", [2, 4, 8])
def test_accumulated_micro_batches_of_unequal_loss_tokens_equal_the_full_batch(accumulation):
    with jax.enable_x64(True):
        batch, params = make_batch(), make_params(jnp.float64)
        per_row = batch.loss_mask.sum(axis=1)
        assert len(set(per_row.tolist())) > 3
        whole, whole_metrics = run(params, batch)
        parts, parts_metrics = run(params, batch, accumulation=accumulation)
        np.testing.assert_allclose(parts.params["table"], whole.params["table"], rtol=1e-14)
        for name in ("loss", "grad_norm", "tokens"):
            np.testing.assert_allclose(parts_metrics[name], whole_metrics[name], rtol=1e-14)


def test_the_gradient_is_that_of_the_mean_over_loss_tokens():
    batch, params = make_batch(), make_params()

    def mean_loss(params):
        loss = bigram_loss(params, batch)
        return loss.total / loss.weight

    loss, gradient = jax.value_and_grad(mean_loss)(params)
    state, metrics = run(params, batch)
    expected = params["table"] - gradient["table"]
    np.testing.assert_allclose(state.params["table"], expected, atol=1e-6)
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-6)
    assert metrics["tokens"] == batch.loss_mask.sum()


@pytest.mark.parametrize("accumulation", [1, 4])
def test_clipping_bounds_the_norm_of_the_whole_gradient(accumulation):
    batch, params = make_batch(), make_params()
    state, metrics = run(params, batch, clip_norm=0.01, accumulation=accumulation)
    moved = np.linalg.norm(state.params["table"] - params["table"])
    assert metrics["grad_norm"] > 0.1
    assert moved == pytest.approx(0.01, rel=1e-4)


def test_clipping_leaves_a_small_gradient_as_it_is():
    batch, params = make_batch(), make_params()
    clipped, _ = run(params, batch, clip_norm=100.0)
    free, _ = run(params, batch)
    np.testing.assert_array_equal(clipped.params["table"], free.params["table"])


def test_z_loss_moves_the_weights_and_stays_out_of_the_reported_loss():
    batch, params = make_batch(), make_params()

    def with_z(params, batch):
        return bigram_loss(params, batch, z_weight=0.1)

    plain, plain_metrics = run(params, batch)
    state, metrics = run(params, batch, loss=with_z)
    assert metrics["loss"] == plain_metrics["loss"]
    expected = bigram_loss(params, batch, z_weight=0.1)
    z_loss = expected.sums["z_loss"] / expected.weight
    assert metrics["z_loss"] == pytest.approx(float(z_loss), rel=1e-6)
    assert np.abs(state.params["table"] - plain.params["table"]).max() > 1e-3
    assert "z_loss" not in plain_metrics


def with_loss(found: Loss, loss: jax.Array) -> Loss:
    return found._replace(total=loss, sums={"loss": loss})


def poisoned_loss(params, batch: Batch) -> Loss:
    """Not a number where the first token is 6."""
    found = bigram_loss(params, batch)
    poison = jnp.where(batch.inputs[0, 0] == 6, jnp.nan, 1.0)
    return with_loss(found, found.total * poison)


def poison(batch: Batch, poisoned: bool) -> Batch:
    batch.inputs[0, 0] = 6 if poisoned else 0
    return batch


def test_the_rate_is_the_schedules_of_the_step_also_after_a_skipped_update():
    step, optimizer = build(schedule=lambda step: 0.1 * (step + 1), loss=poisoned_loss)
    state = init_state(make_params(), optimizer, None)
    good, bad = poison(make_batch(), False), poison(make_batch(), True)
    rates = []
    for batch in (good, bad, good):
        state, metrics = step(state, batch)
        rates.append(float(metrics["learning_rate"]))
    assert rates == pytest.approx([0.1, 0.2, 0.3], rel=1e-6)
    assert np.isfinite(metrics["loss"])


def test_a_step_that_is_not_finite_changes_nothing_but_the_counts():
    config = AdamWConfig()
    axes = {"table": jax.sharding.PartitionSpec("vocab", "d_model")}
    step, optimizer = build(make_optimizer(config, axes), loss=poisoned_loss, ema_decay=0.9)
    good, bad = poison(make_batch(), False), poison(make_batch(2), True)
    state, _ = step(init_state(make_params(), optimizer, 0.9), good)
    skipped, metrics = step(state, bad)
    assert np.isnan(metrics["loss"])
    assert (int(skipped.step), int(skipped.nonfinite), int(metrics["nonfinite"])) == (2, 1, 1)
    for part in ("params", "opt_state", "ema"):
        before, after = getattr(state, part), getattr(skipped, part)
        jax.tree.map(np.testing.assert_array_equal, after, before)

    again, _ = step(skipped, bad)
    assert int(again.nonfinite) == 2
    resumed, metrics = step(again, good)
    assert (int(resumed.step), int(resumed.nonfinite)) == (4, 0)
    assert np.isfinite(metrics["loss"])
    assert np.abs(resumed.params["table"] - state.params["table"]).max() > 0


def test_an_infinite_gradient_of_a_finite_loss_is_skipped():
    def loss(params, batch):
        tiny = jnp.sum(params["table"] ** 2) * 0.0
        return with_loss(bigram_loss(params, batch), jnp.sqrt(tiny))  # √0: gradient ∞ · 0

    params = make_params()
    state, metrics = run(params, make_batch(), loss=loss)
    assert np.isfinite(metrics["loss"])
    assert not np.isfinite(metrics["grad_norm"])
    assert int(state.nonfinite) == 1
    np.testing.assert_array_equal(state.params["table"], params["table"])


def test_a_batch_without_loss_tokens_moves_nothing():
    batch = make_batch()._replace(loss_mask=np.zeros((ROWS, LENGTH), bool))
    params = make_params()
    state, metrics = run(params, batch)
    assert (float(metrics["loss"]), float(metrics["grad_norm"])) == (0.0, 0.0)
    np.testing.assert_array_equal(state.params["table"], params["table"])


def test_the_average_follows_the_weights():
    params, batch = make_params(), make_batch()
    state, _ = run(params, batch, ema_decay=0.75)
    expected = 0.75 * params["table"] + 0.25 * state.params["table"]
    np.testing.assert_allclose(state.ema["table"], expected, atol=1e-6)


def test_small_updates_move_float32_master_weights_under_bfloat16_compute():
    """A relative change of 1e-4 is below bfloat16's resolution of 1/256, yet is kept."""
    config = Config.model_validate({"model": MODEL})
    model = build_model(config.model, vocab_size=VOCAB, dtype=jnp.bfloat16)
    axes = logical_axes(abstract_parameters(model))
    optimizer = make_optimizer(AdamWConfig(learning_rate=1e-6, weight_decay=0.0), axes)
    batch = make_batch()
    params = meta.unbox(jax.jit(model.init)(jax.random.key(0), batch.inputs)["params"])

    def loss_of(params, reference, batch, rngs):
        objective = NextTokenConfig()
        return objective.loss(model, params, batch, z_loss=0.0, rngs=rngs, reference=None)

    step = jax.jit(make_train_step(loss_of, optimizer, lambda s: 1.0, StepOptions(1e-6)))
    state = init_state(params, optimizer, None)
    for _ in range(3):
        state, _ = step(state, batch)
    scale = state.params["final_norm"]["scale"]
    assert scale.dtype == jnp.float32
    moved = np.abs(np.asarray(scale) - 1.0)
    assert (moved > 0).all()
    assert moved.max() < 1e-5
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
        assert new.dtype == jnp.float32
        assert (np.asarray(old) != np.asarray(new)).mean() > 0.5
