"""T5's relative positions against their definition, in float64."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.contract import DIMS, assert_close, one_document
from flax.core import meta

from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.mixers import build_mixer
from jaxformer.model.mixers.attention import AttentionConfig
from jaxformer.model.positions import RelativePositionsConfig
from jaxformer.ops import row_attention
from jaxformer.ops.relative_bias import buckets
from tests.model.depth import small

# Seven tokens are two blocks of three queries and a rest. The last bucket has more than one
# distance, and so has the one before it.
LENGTH, BLOCK = 7, 3
# Distances 0, 1, 2, 3 and 4, 5, 6 and more; of each side, 0, 1, 2 and 3, 4 and more.
SCHEMES = {
    "causal": RelativePositionsConfig(num_buckets=6, max_distance=8),
    "full": RelativePositionsConfig(num_buckets=8, max_distance=5),
}
RELATIVE = {"kind": "relative", "num_buckets": 5, "max_distance": 6}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def bucket(behind: int, scheme: RelativePositionsConfig, order: str) -> int:
    """Of a key so many tokens behind its query, as the paper's code has it."""
    count, first = scheme.num_buckets, 0
    if order == "full":
        count //= 2
        first = count if behind < 0 else 0
    distance, exact = abs(behind) if order == "full" else max(behind, 0), count // 2
    if distance < exact:
        return first + distance
    share = math.log(distance / exact) / math.log(scheme.max_distance / exact)
    return first + min(count - 1, exact + int(share * (count - exact)))


@pytest.mark.parametrize("order", ["causal", "full"])
def test_buckets_are_those_of_the_paper(order: str) -> None:
    """In its own sizes, whose bounds are whole where they are 16, 32 and 64, and in others."""
    for scheme in (RelativePositionsConfig(), SCHEMES[order]):
        places = jnp.arange(400)
        options = (scheme.num_buckets, scheme.max_distance, order == "causal")
        found = buckets(places[None, 150:151], places[None], *options)[0, 0]
        assert found.tolist() == [bucket(150 - key, scheme, order) for key in range(400)]


@pytest.mark.parametrize("order", ["causal", "full"])
def test_outputs_and_gradients_are_those_of_the_definition(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the table are summed over the rows, which all have the same."""
    monkeypatch.setattr(row_attention, "SMALLEST_BLOCK", BLOCK)
    scheme, config = SCHEMES[order], AttentionConfig(num_heads=2, num_kv_heads=1, scale=1.0)
    dims = dataclasses.replace(DIMS, d_model=4, is_causal=order == "causal")
    mixer = build_mixer(config, dims, scheme, parent=None)
    x, weights = jax.random.normal(jax.random.key(1), (2, 2, LENGTH, 4))
    table = jax.random.normal(jax.random.key(2), (2, scheme.num_buckets))
    rows = one_document(LENGTH)._replace(relative_bias=jnp.zeros((2, *table.shape)))
    params = meta.unbox(mixer.init(jax.random.key(0), x, rows)["params"])
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

    def ours(params: dict, table: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        every = jnp.broadcast_to(table, (2, *table.shape))
        y, _ = mixer.apply({"params": params}, x, rows._replace(relative_bias=every))
        return jnp.sum(y * weights), y

    def defined(params: dict, table: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        q, k, v = (
            jnp.einsum("bld,dhf->bhlf", x, params[name]["kernel"])
            for name in ("query", "key", "value")
        )
        k, v = (jnp.repeat(part, 2, axis=1) for part in (k, v))
        places = range(LENGTH)
        found = [[bucket(t - s, scheme, order) for s in places] for t in places]
        logits = jnp.einsum("bhtf,bhsf->bhts", q, k) + table[:, np.array(found)]
        seen = np.ones((LENGTH, LENGTH), bool)
        logits = jnp.where(np.tril(seen) if order == "causal" else seen, logits, -np.inf)
        y = jnp.einsum("bhts,bhsf->bthf", jax.nn.softmax(logits), v)
        y = jnp.einsum("bthf,hfd->btd", y, params["output"]["kernel"])
        return jnp.sum(y * weights), y

    arguments, by = (params, table, x), (0, 1, 2)
    (_, y), gradients = jax.jit(jax.value_and_grad(ours, by, has_aux=True))(*arguments)
    (_, expected_y), expected = jax.value_and_grad(defined, by, has_aux=True)(*arguments)
    assert_close(y, expected_y)
    jax.tree.map(assert_close, gradients, expected)


def model_of(depth: dict) -> LanguageModel:
    """Attention and a recurrence, with a table for the former."""
    pattern = [{"mixer": small.MIXERS["parallel"]}, {"mixer": small.MIXERS["attention"]}]
    return small.model_of(depth, pattern=pattern, positions=RELATIVE)


@pytest.mark.parametrize("kind", ["fixed", "mixture"])
def test_a_row_read_in_pieces_is_the_whole_one(kind: str) -> None:
    """Of a mixture, outside of training, where a predictor chooses tokens one by one."""
    model = model_of({"kind": kind})
    params = small.parameters(model)
    assert params["relative_bias"].shape == (2, 5)
    whole = small.hidden(model, params)
    small.assert_close(small.in_pieces(model, params, [3, 3], layout="separate"), whole)
    moved = small.hidden(model, params | {"relative_bias": params["relative_bias"][:, ::-1]})
    assert jnp.abs(moved - whole).max() > 0.01


def test_every_layout_and_rematerialisation_has_the_same_gradient() -> None:
    model = model_of({"kind": "fixed"}).clone(remat="full")
    params = small.parameters(model)
    _, expected = small.differentiated(model.clone(layout="unrolled", remat="none"), params)
    _, found = small.differentiated(model, params)
    small.assert_close(found, expected)


def test_turns_of_a_random_number_have_no_gradient_for_the_table() -> None:
    """Or there would be none at all: no gradient passes a loop of unknown length."""
    loop = {"kind": "loop", "inject": "add", "turns": {"mean": 2.0, "most": 3}, "backward": 1}
    model = model_of(loop)
    loss = partial(small.loss_of, model, key=jax.random.key(0))
    params = jax.eval_shape(lambda: small.parameters(model))
    assert jax.eval_shape(jax.grad(loss), params)["relative_bias"].shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"order": "full"},
            "positions.num_buckets is 5, half of which are for each side in a model of order full; "
            "allowed: even numbers from 4",
        ),
        (
            {"positions": RELATIVE | {"max_distance": 2}},
            "positions.max_distance is 2, but 2 of num_buckets 5 are for one distance each; "
            "allowed: more than 2",
        ),
        (
            {"pattern": [{}, {"mixer": {"kind": "attention", "num_heads": 4}}]},
            "one table of biases for every head, but there are layers of 2 and 4 heads; give",
        ),
        (
            {"pattern": [{"positions": RELATIVE}], "positions": {"kind": "none"}},
            "pattern entry 0 has positions relative, which are one table that all of the model's "
            "layers share; give model.positions. Allowed in an entry: rope, axial_rope, alibi,",
        ),
        (
            {"mixer": {"kind": "min_gru"}},
            r"positions are relative, which no layer uses \(mixers: min_gru\); give another kind",
        ),
        (
            {"further": {"kind": "heads"}},
            "further has the model's positions, relative, whose table is of the model's layers",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate(small.MODEL | {"positions": RELATIVE} | options)
