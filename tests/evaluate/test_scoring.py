"""Packed continuations against one at a time."""

import jax
import numpy as np
import pytest
from flax.core import meta

from jaxformer.config import Config
from jaxformer.data.plain_tokenizers import ByteTokenizer
from jaxformer.errors import UserError
from jaxformer.evaluate.scoring import Continuation, score
from jaxformer.generate.sampling import Sampling
from jaxformer.model.language_model import build_model
from jaxformer.parallel.mesh import make_mesh
from jaxformer.run import Run
from tests.runs import MODEL

LENGTH = 24
BOS = ByteTokenizer.bos_id


def small_run(**sections: dict) -> Run:
    """A random model, far from uniform, on one device."""
    data = {
        "model": MODEL,
        "data": {"sequence_length": LENGTH},
        "train": {"batch_size": 3},
        **sections,
    }
    config = Config.model_validate(data)
    model = build_model(config.model, vocab_size=ByteTokenizer.vocab_size)
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))["params"]
    params = jax.tree.map(lambda leaf: 5 * leaf, meta.unbox(params))
    mesh = make_mesh({}, devices=jax.devices()[:1])
    return Run(config, model, params, ByteTokenizer(), 7, mesh)


@pytest.fixture(scope="module")
def run() -> Run:
    return small_run()


def continuations() -> list[Continuation]:
    """Of many lengths: some fill a row, some are cut, some share one."""
    random = np.random.default_rng(0)
    sizes = [(1, 1), (3, 4), (1, LENGTH), (30, 9), (5, 1), (2, 7), (LENGTH, 1), (9, 3), (40, 24)]
    return [
        Continuation(random.integers(0, 256, c).tolist(), random.integers(0, 256, t).tolist())
        for c, t in sizes
    ]


def naive(run: Run, continuation: Continuation) -> tuple[float, bool]:
    """One at a time, the softmax in float64."""
    tokens = [*continuation.context, *continuation.tokens][-(LENGTH + 1) :]
    logits = run.model.apply({"params": run.params}, np.array([tokens[:-1]]))
    logits = np.asarray(logits[0], np.float64)[-len(continuation.tokens) :]
    log_z = np.log(np.sum(np.exp(logits), axis=-1))
    at = np.arange(len(logits)), np.array(continuation.tokens)
    greedy = np.argmax(logits, axis=-1) == continuation.tokens
    return float(np.sum(logits[at] - log_z)), bool(greedy.all())


def test_packed_continuations_score_as_one_at_a_time(run):
    expected = [naive(run, each) for each in continuations()]
    found = score(run, continuations())
    assert [each.greedy for each in found] == [greedy for _, greedy in expected]
    np.testing.assert_allclose(
        [each.log_prob for each in found], [log_prob for log_prob, _ in expected], atol=1e-4, rtol=0
    )


def test_scores_depend_neither_on_the_rows_at_once_nor_on_their_length(run):
    whole = score(run, continuations())
    wider = small_run(train={"batch_size": 8}, data={"sequence_length": 64})
    for other, each in (
        (small_run(train={"batch_size": 1}), continuations()),
        (wider, [Continuation(c[-(LENGTH + 1 - len(t)) :], t) for c, t in continuations()]),
    ):
        found = score(other, each)
        assert [one.greedy for one in found] == [one.greedy for one in whole]
        np.testing.assert_allclose(
            [one.log_prob for one in found], [one.log_prob for one in whole], atol=1e-5, rtol=0
        )


def test_likeliest_tokens_are_greedy(run):
    text = run.tokenizer.encode("ab").tolist()
    pieces = run.decoder.decode([[BOS, *text]], max_new_tokens=4, sampling=Sampling(temperature=0))
    made = np.concatenate(list(pieces), axis=1)[0].tolist()
    other = [*made[:-1], (made[-1] + 1) % 256]
    right, wrong = score(run, [Continuation([BOS, *text], each) for each in (made, other)])
    assert right.greedy and not wrong.greedy
    assert right.log_prob > wrong.log_prob


def test_a_continuation_longer_than_a_row_is_refused(run):
    with pytest.raises(UserError, match="25 tokens is longer than data.sequence_length, 24"):
        score(run, [Continuation([BOS], [1] * (LENGTH + 1))])
