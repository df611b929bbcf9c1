"""Further predictions: their parameters, costs, and drafts from caches."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxformer.model.accounting import (
    abstract_parameters,
    flops_per_token,
    further_flops_per_token,
)
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel, build_model
from jaxformer.model.lora import LoRAConfig, adapter_paths
from jaxformer.model.parameter_paths import by_path
from jaxformer.model.rows import RowInfo
from jaxformer.model.several_ahead import (
    Drafts,
    FurtherCache,
    Read,
    advance_further,
    draft_further,
    init_further_cache,
    losses_ahead,
)
from jaxformer.parallel.rules import logical_axes

VOCAB, LENGTH, COUNT = 7, 10, 3
AT_ONCE = 3  # tokens that the model reads in a round
MODEL = {
    "d_model": 8,
    "num_layers": 2,
    "vocab_size": VOCAB,
    "mixer": {"kind": "attention", "num_heads": 2},
    "ffn": {"kind": "swiglu", "d_hidden": 8},
    "init": {"std": 0.5},
}
WINDOW = {"mixer": {"kind": "attention", "num_heads": 2, "window": 2}}
RECURRENT = {"pattern": [{"mixer": {"kind": "min_gru"}}]}


def model_of(kind: str, count: int = COUNT, **options: object) -> LanguageModel:
    further = {"kind": kind, "count": count} | options.pop("further", {})
    return build_model(
        ModelConfig.model_validate(MODEL | options | {"further": further}), dtype=jnp.float64
    ).clone(taken_back=AT_ONCE)


def parameters(model: LanguageModel) -> dict:
    start = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    return jax.tree.map(lambda x: x.astype(jnp.float64), meta.unbox(start["params"]))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def greedy(k: int, logits: jax.Array) -> jax.Array:
    return jnp.argmax(logits, axis=-1)


class Whole:
    """Drafts from a row that is read anew, every token of it."""

    def __init__(self, model: LanguageModel, params: dict, tokens: np.ndarray) -> None:
        self.model, self.params, self.tokens = model, params, tokens
        (self.hidden, *_), self.positions = self._trunk(tokens), jnp.arange(LENGTH)[None]
        self.logits = jax.jit(self._logits)

    def _trunk(self, tokens: np.ndarray) -> tuple:
        return self.model.apply({"params": self.params}, tokens[None], method="trunk")

    def _logits(self, row: jax.Array) -> jax.Array:
        """[count, length, vocab], of every prediction for a row [length + count]."""

        def of(model: LanguageModel) -> jax.Array:
            info = RowInfo(self.positions, jnp.ones((1, LENGTH), jnp.int32))
            ahead = [(row[None, k : k + LENGTH], info) for k in range(1, COUNT + 1)]
            made, _ = model.predict_further(self.hidden, ahead)
            return jnp.concatenate([model.outputs.logits(model.head(), each) for each in made])

        return self.model.apply({"params": self.params}, method=of)

    def drafts(self, newest: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens after `newest` and their logits, with what is later in the row unknown."""
        row = np.zeros(LENGTH + COUNT, np.int64)
        row[: newest + 1] = self.tokens[: newest + 1]
        for k in range(1, COUNT + 1):
            logits = self.logits(jnp.asarray(row))[:, newest - 1]
            row[newest + k] = int(jnp.argmax(logits[k - 1]))
        return row[newest + 1 : newest + 1 + COUNT], np.asarray(logits)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, each) for kind in ("heads", "modules") for each in ({}, WINDOW, RECURRENT)),
        ("modules", {"further": {"own_norms": True}}),
    ],
)
def test_drafts_from_caches_are_those_of_the_whole_row(kind: str, options: dict) -> None:
    model = model_of(kind, **options)
    params = parameters(model)
    random = np.random.default_rng(0)
    rows = random.integers(0, VOCAB, (2, LENGTH))
    wholes = [Whole(model, params, row) for row in rows]
    garbage = random.normal(size=(2, LENGTH, 8))

    @jax.jit
    def advance(cache: FurtherCache, new: Read, counts: jax.Array | None) -> FurtherCache:
        return model.apply({"params": params}, cache, new, counts, method=advance_further)

    @jax.jit
    def draft(cache: FurtherCache, token: jax.Array) -> tuple[Drafts, FurtherCache]:
        return model.apply({"params": params}, cache, token, greedy, method=draft_further)

    def read(starts: list[int], ends: list[int], length: int, align: str) -> Read:
        """Places starts[r], …, ends[r] − 1 of the rows, among `length` columns of rubbish."""
        hidden = garbage[:, :length].copy()
        tokens, positions, segments = (np.zeros((2, length), np.int32) for _ in range(3))
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            first = length - (end - start) if align == "right" else 0
            here = slice(first, first + end - start)
            hidden[row, here] = wholes[row].hidden[0, start:end]
            tokens[row, here] = rows[row, start:end]
            positions[row, here] = np.arange(start, end)
            segments[row, here] = 1
            if align == "left":  # rejected tokens look like others
                positions[row, end - start :] = np.arange(end, start + length)
                segments[row] = 1
        return jax.tree.map(jnp.asarray, Read(hidden, tokens, positions, segments))

    def check(cache: FurtherCache, newest: list[int]) -> FurtherCache:
        drafts, same = draft(
            cache, jnp.array([row[place] for row, place in zip(rows, newest, strict=True)])
        )
        for row, place in enumerate(newest):
            tokens, logits = wholes[row].drafts(place)
            np.testing.assert_array_equal(drafts.tokens[row], tokens)
            np.testing.assert_allclose(drafts.logits[row], logits, rtol=0, atol=1e-12)
        return same

    # Prompts of 4 and 1 tokens, aligned at their ends and read in two pieces; then rounds.
    newest = [4, 1]
    whole = read([0, 0], newest, 4, "right")
    cache = init_further_cache(model, 2, LENGTH + AT_ONCE, jnp.float64)
    for piece in (slice(0, 3), slice(3, 4)):
        cache = advance(cache, jax.tree.map(lambda x, at=piece: x[:, at], whole), None)
    cache = check(cache, newest)
    for counts in ([1, 3], [2, 0], [1, 2]):
        ends = [place + count for place, count in zip(newest, counts, strict=True)]
        cache = advance(cache, read(newest, ends, AT_ONCE, "left"), jnp.array(counts))
        newest = ends
        cache = check(cache, newest)


def test_modules_with_own_norms_read_and_give_normalised_states() -> None:
    """A chain of two modules is that of modules without, put between norms by hand."""
    options = {"count": 2, "further": {"own_norms": True}}
    model = model_of("modules", **options)
    params = parameters(model)
    params = jax.tree.map(
        lambda x: x + 0.3 * np.random.default_rng(x.size).normal(size=x.shape), params
    )
    plain = model_of("modules", count=2)
    bare = params | {"further": {k: v for k, v in params["further"].items() if k[9:] != "norm"}}
    tokens = np.random.default_rng(0).integers(0, VOCAB, (1, LENGTH))
    rows = RowInfo(jnp.arange(LENGTH)[None], jnp.ones((1, LENGTH), jnp.int32))
    following = np.roll(tokens, -1), np.roll(tokens, -2)

    def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * scale

    def whole(model: LanguageModel) -> list[jax.Array]:
        x, _, _ = model.trunk(tokens)
        made, _ = model.predict_further(x, [(row, rows) for row in following])
        return made

    def by_hand(model: LanguageModel) -> list[jax.Array]:
        x, made = model.normed(model.trunk(tokens)[0]), []
        for k, row in enumerate(following, start=1):
            y, _, _ = model.further(k, x, model.embed(row, rows.positions + k), rows, None)
            x = norm(y, params["further"][f"module_{k}_norm"]["scale"])
            made.append(x)
        return made

    ours = jax.jit(lambda: model.apply({"params": params}, method=whole))()
    expected = jax.jit(lambda: plain.apply({"params": bare}, method=by_hand))()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["heads", "modules"])
def test_the_model_starts_and_predicts_the_next_token_as_without(kind: str) -> None:
    model = model_of(kind)
    without = build_model(ModelConfig.model_validate(MODEL), dtype=jnp.float64)
    ours, theirs = parameters(model), parameters(without)
    further = ours.pop("further")
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    tokens = jnp.arange(4)[None]
    logits = model.apply({"params": ours | {"further": further}}, tokens)
    np.testing.assert_array_equal(logits, without.apply({"params": theirs}, tokens))


@pytest.mark.parametrize("kind", ["heads", "modules"])
def test_costs_are_counted_beside_those_of_decoding(kind: str) -> None:
    model, without = model_of(kind), build_model(ModelConfig.model_validate(MODEL))
    assert flops_per_token(model, 8) == flops_per_token(without, 8)
    assert further_flops_per_token(without, 8) == 0
    head = 2 * 8 * VOCAB
    layer = (flops_per_token(without, 8) - head) / 2
    join = 2 * (2 * 8) * 8 if kind == "modules" else 0
    assert further_flops_per_token(model, 8) == COUNT * (layer + head + join)


def test_every_parameter_has_its_axes_and_adapters_reach_the_layers() -> None:
    boxed = abstract_parameters(model_of("modules").clone(lora=LoRAConfig(rank=2)))
    axes = by_path(logical_axes(boxed))
    assert tuple(axes["further/module_2_projection/kernel"]) == ("d_hidden", "d_model")
    added = [path for path in adapter_paths(meta.unbox(boxed)) if path.startswith("further/")]
    assert len(added) == 2 * COUNT * 4  # A and B of four projections
    assert "further/module_3/mixer/query/lora/a" in added
    model = model_of("modules").clone(lora=LoRAConfig(rank=2))
    more = further_flops_per_token(model, 8) - further_flops_per_token(model_of("modules"), 8)
    leaves = by_path(meta.unbox(boxed))
    assert more == 2 * sum(math.prod(leaves[path].shape) for path in added)


def test_a_layer_of_its_own_may_stand_above_a_recurrence() -> None:
    layer = {"mixer": MODEL["mixer"], "ffn": "none"}
    params = abstract_parameters(model_of("modules", **RECURRENT, further={"layer": layer}))
    assert set(params["further"]["module_1"]) == {"mixer", "mixer_norm"}
    assert "query" in params["further"]["module_1"]["mixer"]
    assert "update" in params["stack"]["groups"]["layer_0"]["mixer"]


def test_a_layer_that_does_not_fit_is_refused() -> None:
    layer = {"mixer": {"kind": "attention", "num_heads": 3}}
    with pytest.raises(ValueError, match="d_model 8 is not divisible by num_heads 3"):
        model_of("heads", further={"layer": layer})
    positions = {"kind": "learned", "max_length": 8}
    with pytest.raises(ValueError, match=r"layer\.positions is learned, which is added"):
        model_of("heads", further={"layer": {"positions": positions}})


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialisation_changes_nothing(remat: str) -> None:
    model = model_of("modules", count=1)
    params, tokens = parameters(model), jnp.arange(6)[None] % VOCAB
    ones = jnp.ones_like(tokens)

    def total(model: LanguageModel, params: dict) -> jax.Array:
        rows = (tokens, tokens, jnp.cumsum(ones, 1) - 1, ones, ones == 1)
        (first, further), _ = model.apply({"params": params}, *rows, method=losses_ahead)
        return first.loss + further.loss

    ours, theirs = (
        jax.jit(jax.grad(partial(total, model.clone(remat=name))))(params)
        for name in (remat, "none")
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-13), ours, theirs)
