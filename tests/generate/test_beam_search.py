"""Beam search against all targets that there are, and against greedy decoding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxformer.batch import Pair, Source
from jaxformer.errors import UserError
from jaxformer.generate.beam_search import BeamSearch, Written, write
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel, build_model

VOCAB, EOS, MOST = 4, 3, 3
START = (2,)
SOURCES = np.array([[0, 1, 1], [1, 0, 0], [0, 0, 1], [1, 1, 1]])
LENGTHS = np.array([3, 1, 2, 3])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def translator() -> tuple[LanguageModel, dict]:
    shared = {
        "d_model": 8,
        "mixer": {"kind": "attention", "num_heads": 2},
        "ffn": None,
        "init": {"std": 0.9, "output": "plain"},
    }
    config = shared | {
        "num_layers": 2,
        "vocab_size": VOCAB,
        "pattern": [{}, {"mixer": {"kind": "cross_attention", "num_heads": 2}}],
        "encoder": shared | {"num_layers": 1, "length": 3},
    }
    with jax.enable_x64(True):
        model = build_model(ModelConfig.model_validate(config), dtype=jnp.float64)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model.config.example)
        params = meta.unbox(jax.jit(model.init)(jax.random.key(1), zeros)["params"])
        return model, jax.tree.map(lambda x: 2 * x.astype(jnp.float64), params)


def source_of(rows: np.ndarray, lengths: np.ndarray) -> Source:
    places = np.arange(rows.shape[1])
    real = places < lengths[:, None]
    return Source(rows * real, np.where(real, places, 0), real.astype(int))


def written(translator: tuple, search: BeamSearch, start: tuple[int, ...] = START) -> Written:
    model, params = translator
    run = jax.jit(lambda *rows: write(model, search, start, EOS, params, Source(*rows)))
    return jax.tree.map(np.asarray, run(*source_of(SOURCES, LENGTHS)))


def log_probs(translator: tuple, targets: np.ndarray, start: tuple[int, ...] = START) -> np.ndarray:
    """log p of every token [sources, targets, length], each target read whole."""
    model, params = translator
    source, count = source_of(SOURCES, LENGTHS), len(targets)
    each = Source(*(np.repeat(x, count, axis=0) for x in source))
    tokens = np.tile(targets, (len(SOURCES), 1))
    before = np.tile(start, (len(tokens), 1))
    inputs = np.concatenate([before, tokens[:, :-1]], axis=1)
    logits = jax.jit(
        lambda *rows: model.apply({"params": params}, Pair(rows[0], Source(*rows[1:])))
    )(inputs, *each)
    found = jax.nn.log_softmax(logits[:, len(start) - 1 :])
    found = jnp.take_along_axis(found, jnp.asarray(tokens)[..., None], axis=-1)[..., 0]
    return np.asarray(found).reshape(len(SOURCES), count, -1)


@pytest.mark.parametrize(("length_penalty", "start"), [(0.0, START), (2.0, (1, 0, 2))])
def test_enough_beams_find_the_best_of_all_targets(
    translator: tuple, length_penalty: float, start: tuple[int, ...]
):
    """So many that none of the 3³ hypotheses without an end is dropped."""
    search = BeamSearch(beams=27, length_penalty=length_penalty, max_new_tokens=MOST)
    result = written(translator, search, start)
    targets = np.array(list(itertools.product(range(VOCAB), repeat=MOST)))
    each = log_probs(translator, targets, start)
    best: list[tuple[float, list[int]]] = [(-np.inf, [])] * len(SOURCES)
    for target, scores in zip(targets, np.moveaxis(each, 1, 0), strict=True):
        if EOS not in target:
            continue
        length = list(target).index(EOS) + 1
        totals = scores[:, :length].sum(axis=1) / ((5 + length) / 6) ** length_penalty
        padded = [*target[:length], *[EOS] * (MOST - length)]
        best = [max(old, (total, padded)) for old, total in zip(best, totals, strict=True)]
    np.testing.assert_allclose(result.scores, [score for score, _ in best], rtol=1e-12)
    assert result.tokens.tolist() == [target for _, target in best]


def test_one_beam_is_greedy(translator: tuple):
    """Whatever the penalty; a target without an end is cut."""
    result = written(translator, BeamSearch(beams=1, length_penalty=1.0, max_new_tokens=MOST))
    targets = np.full((len(SOURCES), MOST), EOS)
    for place, row in itertools.product(range(MOST), range(len(SOURCES))):
        if EOS in targets[row, :place]:
            continue
        tried = np.repeat(targets[row, None], VOCAB, axis=0)
        tried[:, place] = range(VOCAB)
        targets[row, place] = np.argmax(log_probs(translator, tried)[row, :, place])
    assert result.tokens.tolist() == targets.tolist()
    assert len({tuple(row) for row in targets}) > 1  # the sources matter


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams is 0; allowed: 1 or more"),
        ({"length_penalty": -0.5}, "length_penalty is -0.5; allowed: 0 or more"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; allowed: 1 or more"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str):
    with pytest.raises(UserError, match=message):
        BeamSearch(**options)
