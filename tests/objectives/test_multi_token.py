"""Losses of several tokens ahead, against the papers' formulas written out for one document."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxformer.batch import Batch
from jaxformer.model.block import Block
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel, build_model
from jaxformer.model.residuals import build_residual
from jaxformer.model.rows import RowInfo
from jaxformer.objectives.multi_token import MultiTokenConfig
from jaxformer.objectives.next_token import NextTokenConfig

VOCAB, COUNT, WEIGHT = 7, 2, 0.3
# Two rows: documents of 4, 1 and 3 tokens, and one of 5 that leaves padding.
LENGTHS = ((4, 1, 3), (5,))
LENGTH = 9


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def model_of(kind: str, count: int = COUNT, **options: object) -> LanguageModel:
    config = {
        "d_model": 8,
        "num_layers": 1,
        "vocab_size": VOCAB,
        "mixer": {"kind": "attention", "num_heads": 2},
        "ffn": {"kind": "swiglu", "d_hidden": 8},
        "init": {"std": 0.5},
        "further": {"kind": kind, "count": count},
    }
    return build_model(ModelConfig.model_validate(config | options), dtype=jnp.float64)


def parameters(model: LanguageModel) -> dict:
    start = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    return jax.tree.map(lambda x: x.astype(jnp.float64), meta.unbox(start["params"]))


def documents() -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Of each row: (tokens [n + 1], which targets [n] are learnt)."""
    random = np.random.default_rng(0)
    return [
        [(random.integers(0, VOCAB, n + 1), random.random(n) < 0.8) for n in lengths]
        for lengths in LENGTHS
    ]


def packed() -> Batch:
    rows = np.zeros((5, len(LENGTHS), LENGTH), np.int64)
    for row, pieces in enumerate(documents()):
        start = 0
        for number, (tokens, learnt) in enumerate(pieces, start=1):
            n = len(learnt)
            parts = (tokens[:-1], tokens[1:], np.arange(n), np.full(n, number), learnt)
            for array, part in zip(rows, parts, strict=True):
                array[row, start : start + n] = part
            start += n
    return Batch(*rows[:4].astype(np.int32), rows[4].astype(bool))


def losses_of_document(
    model: LanguageModel, params: dict, tokens: np.ndarray, learnt: np.ndarray
) -> list[jax.Array]:
    """[Σ −log p(the token j places ahead) for j = 1, 2, …] of one document."""
    config, n = model.config, len(learnt)
    residual = build_residual(config.residual, config.norm)
    table, inputs = params["embedding"], tokens[:-1]

    def block(name: str, x: jax.Array) -> jax.Array:
        size = x.shape[1]
        info = RowInfo(jnp.arange(size)[None], jnp.ones((1, size), jnp.int32))
        layer = Block(config.layers()[-1], residual, model.dims, parent=None)
        return layer.apply({"params": params["further"][name]}, x, info)[0]

    def rms(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + config.norm.eps) * scale

    def loss(h: jax.Array, ahead: int) -> jax.Array:
        """Of the last layer's output h [1, ≥ n + 1 − ahead, d_model]."""
        total = 0.0
        for t in range(n + 1 - ahead):
            logits = rms(h[0, t], params["final_norm"]["scale"]) @ table.T
            if learnt[t + ahead - 1]:
                total += jax.nn.logsumexp(logits) - logits[tokens[t + ahead]]
        return total

    trunk, *_ = model.apply({"params": params}, inputs[None], method="trunk")
    found, h = [loss(trunk, 1)], trunk
    for k in range(1, config.further.count + 1):
        if k >= n:
            found.append(jnp.zeros(()))
            continue
        if config.further.kind == "heads":
            h = block(f"head_{k}", trunk)
        else:
            further = params["further"]
            of_hidden = rms(h[:, : n - k], further[f"module_{k}_hidden_norm"]["scale"])
            ahead = table[inputs[k:]][None]
            of_token = rms(ahead, further[f"module_{k}_embedding_norm"]["scale"])
            both = jnp.concatenate([of_hidden, of_token], -1)
            h = block(f"module_{k}", both @ further[f"module_{k}_projection"]["kernel"])
        found.append(loss(h, 1 + k))
    return found


def expected(model: LanguageModel, params: dict) -> tuple[jax.Array, list[jax.Array]]:
    pieces = [piece for row in documents() for piece in row]
    each = [losses_of_document(model, params, *piece) for piece in pieces]
    first, *further = (sum(losses) for losses in zip(*each, strict=True))
    return first + WEIGHT / len(further) * sum(further), [first, *further]


def loss_of(objective: object, model: LanguageModel, batch: Batch, params: dict, **options: float):
    options = {"z_loss": 0.0} | options
    return objective.loss(model, params, batch, rngs={}, reference=None, **options)


@pytest.mark.parametrize("kind", ["heads", "modules"])
def test_losses_and_gradients_are_those_of_each_document_alone(kind: str) -> None:
    model = model_of(kind)
    params, batch = parameters(model), packed()
    objective = MultiTokenConfig(weight=WEIGHT)

    def total(params: dict) -> tuple[jax.Array, object]:
        loss = loss_of(objective, model, batch, params)
        return loss.total, loss

    (_, loss), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    naive = partial(expected, model)
    (sum_of_all, each), wanted = jax.jit(jax.value_and_grad(naive, has_aux=True))(params)
    np.testing.assert_allclose(loss.total, sum_of_all, rtol=1e-13)
    np.testing.assert_allclose(loss.sums["loss"], each[0], rtol=1e-13)
    for ahead in (2, 3):
        np.testing.assert_allclose(loss.means[f"loss_{ahead}"][0], each[ahead - 1], rtol=1e-13)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-13), gradient, wanted)
    counts = [
        sum(int(learnt[k:].sum()) for row in documents() for _, learnt in row) for k in range(3)
    ]
    found = [loss.weight, loss.means["loss_2"][1], loss.means["loss_3"][1]]
    assert [int(number) for number in found] == counts


@pytest.mark.parametrize("change", [{"count": 0}, {"weight": 0.0}])
def test_without_further_predictions_or_their_weight_it_is_the_next_token(change: dict) -> None:
    model = model_of("modules", change.get("count", 2))
    batch, params = packed(), parameters(model)
    several = MultiTokenConfig(weight=change.get("weight", WEIGHT))

    def of(objective: object) -> tuple:
        def total(params: dict) -> jax.Array:
            loss = loss_of(objective, model, batch, params, z_loss=1e-3)
            return loss.total, (loss.sums, loss.weight)

        return jax.jit(jax.value_and_grad(total, has_aux=True))(params)

    (ours, gradient), (theirs, wanted) = of(several), of(NextTokenConfig())
    tolerance = {"rtol": 0, "atol": 0 if "count" in change else 1e-13}  # other fusions of XLA
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), ours, theirs)
    assert ("further" in gradient) == ("count" not in change)
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient.pop("further", {})))
    wanted.pop("further", None)
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), gradient, wanted)


def test_weights_of_targets_move_with_them() -> None:
    model = model_of("heads", 1)
    params, batch = parameters(model), packed()
    weights = np.where(batch.loss_mask, 2.0, 0.0)
    objective = MultiTokenConfig()
    once, twice = (
        loss_of(objective, model, each, params)
        for each in (batch, batch._replace(loss_mask=weights))
    )
    np.testing.assert_allclose(twice.total, 2 * once.total, rtol=1e-14)
    np.testing.assert_allclose(twice.means["loss_2"][1], 2 * once.means["loss_2"][1])


def test_a_row_shorter_than_the_predictions_reach_has_none() -> None:
    model = model_of("modules")
    row = Batch(*(array[:1, :1] for array in packed()))
    loss = loss_of(MultiTokenConfig(), model, row, parameters(model))
    assert float(loss.total) == float(loss.sums["loss"]) > 0
    assert float(loss.means["loss_2"][1]) == float(loss.means["loss_3"][1]) == 0


def test_a_model_without_further_predictions_is_refused() -> None:
    config = model_of("heads").config.model_copy(update={"further": None})
    with pytest.raises(ValueError, match=r"model\.further is null, so nothing predicts"):
        MultiTokenConfig().check(config)
