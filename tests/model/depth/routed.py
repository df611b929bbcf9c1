"""Small models for the tests of routed depths, in float64, and their functions compiled once."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel, build_model
from jaxformer.model.parameter_paths import by_path, from_paths
from tests.weights import drawn

VOCAB, LENGTH = 7, 10
ATTENTION = {"kind": "attention", "num_heads": 2}
MODEL = {
    "d_model": 8,
    "num_layers": 3,
    "vocab_size": VOCAB,
    "mixer": ATTENTION,
    "ffn": {"kind": "swiglu", "d_hidden": 12},
    "init": {"std": "fan_in", "output": "plain"},
}
GATED_DELTA = {"kind": "gated_delta", "num_heads": 2, "head_dim": 4, "value_expansion": 1.0}
MIXERS = {
    "attention": ATTENTION,
    "window": ATTENTION | {"window": 3, "sinks": 1},
    "gated_delta": GATED_DELTA,
    "parallel": {"kind": "parallel", "mixers": [ATTENTION, {"kind": "min_gru"}]},
}
TOKENS = np.random.default_rng(1).integers(0, VOCAB, (2, LENGTH))
ROW = np.broadcast_to(np.arange(LENGTH), (2, LENGTH))
ONES = np.ones((2, LENGTH), np.int32)
TRAINING = {"depth": jax.random.key(0)}


def model_of(**options: object) -> LanguageModel:
    return build_model(ModelConfig.model_validate(MODEL | options), dtype=jnp.float64)


def parameters(model: LanguageModel, bias: float | None = None) -> dict:
    """Predictors are far enough from 0 to say both yes and no; `bias` is that of every router if
    given."""
    found = by_path(drawn(model, TOKENS))
    for path, leaf in found.items():
        if "predictor" in path or "router" in path:
            found[path] = 3 * leaf
        if path.endswith("router/bias") and bias is not None:
            found[path] = jnp.full_like(leaf, bias)
    return from_paths(found)


@functools.cache
def whole(model: LanguageModel) -> Callable[..., np.ndarray]:
    """(params, tokens, positions, segment_ids) → logits, in evaluation."""
    logits = jax.jit(lambda params, *rows: model.apply({"params": params}, *rows))
    return lambda *arguments: np.asarray(logits(*arguments))


@functools.cache
def step(model: LanguageModel) -> Callable[..., tuple]:
    """(params, tokens, positions, segment_ids, cache) → (logits of the last, cache)."""
    return jax.jit(lambda params, *rows: model.apply({"params": params}, *rows, method="step"))


def gradients(model: LanguageModel, params: dict, rows: tuple) -> tuple:
    """In training: ((loss, losses and statistics of the layers), the gradient of the loss)."""

    def loss(params: dict) -> tuple:
        inputs, positions, segment_ids = rows
        targets, mask = np.roll(inputs, -1, axis=1), segment_ids > 0
        sums, aux = model.apply(
            {"params": params},
            *(inputs, targets, positions, segment_ids, mask),
            method="loss",
            rngs=TRAINING,
        )
        return sums.loss, aux

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def packed() -> tuple[np.ndarray, np.ndarray]:
    """Positions and documents: of 5, 1 and 2 tokens and padding; and of 3 and 7."""
    segments = np.array([[1] * 5 + [2] + [3] * 2 + [0] * 2, [1] * 3 + [2] * 7], np.int32)
    positions = [[0, 1, 2, 3, 4, 0, 0, 1, 0, 1], [0, 1, 2, 0, 1, 2, 3, 4, 5, 6]]
    return np.array(positions), segments


def assert_close(actual: object, expected: object, tolerance: float = 1e-11) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), actual, expected
    )


def assert_causal(model: LanguageModel, params: dict) -> None:
    """Changing a token leaves the logits before it bit-unchanged."""
    logits = whole(model)(params, TOKENS, ROW, ONES)
    for place in range(LENGTH):
        changed = np.where(np.arange(LENGTH) == place, (TOKENS + 1) % VOCAB, TOKENS)
        other = whole(model)(params, changed, ROW, ONES)
        np.testing.assert_array_equal(logits[:, :place], other[:, :place])
        assert not np.array_equal(logits[:, place], other[:, place])


def assert_continues(model: LanguageModel, params: dict) -> None:
    """Whole rows are two halves, and token by token, with padding before the first one."""
    positions, segments = packed()
    expected = whole(model)(params, TOKENS, positions, segments)
    rows, half = (TOKENS, positions, segments), LENGTH // 2
    cache = model.init_cache(2, LENGTH + 2)
    for stop in (half, LENGTH):
        piece = (part[:, stop - half : stop] for part in rows)
        last, cache = step(model)(params, *piece, cache)
        assert_close(last, expected[:, stop - 1])

    cache = model.init_cache(2, LENGTH + 2)
    nothing = np.zeros((2, 1), np.int32)
    for place in (-2, -1, *range(LENGTH)):
        token = (part[:, place, None] if place >= 0 else nothing for part in rows)
        last, cache = step(model)(params, *token, cache)
        if place >= 0:
            real = segments[:, place] > 0
            assert_close(np.asarray(last)[real], expected[:, place][real])


def assert_documents_stand_alone(model: LanguageModel, params: dict) -> None:
    """Packed documents are each alone, followed by padding, whatever its tokens are."""
    positions, segments = packed()
    together = whole(model)(params, TOKENS, positions, segments)
    for row in range(2):
        for document in range(1, int(segments[row].max()) + 1):
            (places,) = np.nonzero(segments[row] == document)
            count = len(places)
            alone = np.full((2, LENGTH), 3)
            alone[:, :count] = TOKENS[row, places]
            real = np.int32(np.arange(LENGTH) < count)
            logits = whole(model)(params, alone, ROW, np.broadcast_to(real, (2, LENGTH)))
            assert_close(logits[0, :count], together[row, places])
