"""Decoding of hidden tokens, against the whole model run anew for every pass."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives.small import VOCAB, model_of

from jaxformer.errors import UserError
from jaxformer.generate.any_order import AnyOrderDecoder
from jaxformer.generate.decode import Decoder
from jaxformer.generate.diffusion import BlockDiffusionDecoder, MaskedDiffusionDecoder
from jaxformer.generate.sampling import Sampling
from jaxformer.generate.unmasking import Unmasking, draw, unmask
from jaxformer.model.inputs import MASK
from jaxformer.ops.attention import Order

PROMPTS = [[3, 1, 4, 1, 5], [2], [2, 6, 5, 3, 5, 1, 0]]
GREEDY = Sampling(temperature=0)
NO_EOS = -1
NEW = 7


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def continuation(decoder: Decoder, prompts: list = PROMPTS, **options: object) -> np.ndarray:
    options = {"max_new_tokens": NEW, "sampling": GREEDY} | options
    return np.concatenate(list(decoder.decode(prompts, **options)), axis=1)


def block_decoder(block: int, eos_id: int = NO_EOS) -> BlockDiffusionDecoder:
    return replace(BlockDiffusionDecoder.of(*model_of(), eos_id), block=block)


@partial(jax.jit, static_argnums=3)
def log_probs_of(
    tokens: jax.Array, positions: jax.Array, rank: jax.Array, length: int
) -> jax.Array:
    """[length, vocab] of one row, whose tokens see those of their rank or a lower one."""
    model, params = model_of()
    order = Order(rank[None], jnp.zeros((1, len(tokens)), bool))
    segments = (jnp.arange(len(tokens)) >= 0).astype(int)
    rows = (tokens[None], positions[None], segments[None], order)
    return jax.nn.log_softmax(model.apply({"params": params}, *rows)[0])[:length]


def log_probs(tokens: list[int], rank: list[int]) -> np.ndarray:
    """Of a row alone; what fills it up is of the highest rank, so that no token sees it."""
    filled = 20 - len(tokens)
    row = np.array([*tokens, *[0] * filled])
    ranks = np.array([*rank, *[1000] * filled])
    return np.asarray(log_probs_of(row, np.arange(20), ranks, 20))[: len(tokens)]


def test_blocks_of_one_are_decoded_as_one_token_after_another():
    plain = continuation(Decoder.of(*model_of(), NO_EOS))
    np.testing.assert_array_equal(continuation(block_decoder(1)), plain)
    assert len(np.unique(plain)) > 2


@pytest.mark.parametrize("steps", [None, 2])
def test_blocks_are_decoded_as_by_the_whole_row_without_caches(steps):
    block = 3
    decoder = block_decoder(block)
    stats = decoder.new_stats()
    found = continuation(decoder.in_steps(steps, None), stats=stats)
    blocks = 1 + (2 + NEW - 1) // block  # of the row that has the most known at first
    assert stats.passes == blocks * ((steps or block) + 1)  # the last adds a block to the cache
    for prompt, row in zip(PROMPTS, found, strict=True):
        tokens = list(prompt)
        while len(tokens) < len(prompt) + NEW:
            start = (len(tokens) - 1) // block * block
            ranks = [place // block for place in range(start + block)]
            tokens += [MASK] * (start + block + 1 - len(tokens))
            hidden = tokens.count(MASK)
            for step in range(steps or block):
                scores = log_probs(tokens[: start + block], ranks)
                passes = steps or block
                count = (step + 1) * hidden // passes - step * hidden // passes
                places = [place for place in range(len(tokens)) if tokens[place] == MASK]
                places.sort(key=lambda place, of=scores: -of[place - 1].max())
                for place in places[:count]:
                    tokens[place] = int(scores[place - 1].argmax())
        assert row.tolist() == tokens[len(prompt) : len(prompt) + NEW]


@pytest.mark.parametrize("steps", [None, 3])
def test_a_hidden_continuation_is_decoded_likeliest_tokens_first(steps):
    decoder = MaskedDiffusionDecoder.of(*model_of(), NO_EOS)
    stats = decoder.new_stats()
    found = continuation(decoder.in_steps(steps, None), stats=stats)
    assert stats.passes == (steps or NEW)
    for prompt, row in zip(PROMPTS, found, strict=True):
        tokens = [*prompt, *[MASK] * NEW]
        passes = steps or NEW
        for step in range(passes):
            scores = log_probs(tokens[:-1], [0] * (len(tokens) - 1))
            places = [place for place in range(len(tokens)) if tokens[place] == MASK]
            places.sort(key=lambda place, of=scores: -of[place - 1].max())
            for place in places[: (step + 1) * NEW // passes - step * NEW // passes]:
                tokens[place] = int(scores[place - 1].argmax())
        assert row.tolist() == tokens[len(prompt) :]


def test_any_order_is_decoded_by_mask_in_the_newest_tokens_place():
    found = continuation(AnyOrderDecoder.of(*model_of(), NO_EOS))
    for prompt, row in zip(PROMPTS, found, strict=True):
        tokens = list(prompt)
        for token in row:
            count = len(tokens)
            filled = [*tokens, MASK, *[0] * (19 - count)]
            positions = [*range(count), count - 1, *[0] * (19 - count)]
            scores = log_probs_of(*map(np.array, (filled, positions, range(20))), 20)
            assert token == int(scores[count].argmax())
            tokens.append(int(token))


@pytest.mark.parametrize("kind", ["masked", "block"])
def test_a_row_that_has_ended_is_filled_with_end_of_text(kind):
    model, params = model_of()
    decoder = block_decoder(2) if kind == "block" else MaskedDiffusionDecoder.of(model, params, -1)
    free = continuation(decoder)
    eos = int(free[0, 3])
    ending = continuation(replace(decoder, eos_id=eos))
    for ours, theirs in zip(ending, free, strict=False):
        ends = np.flatnonzero(theirs == eos)
        first = ends[0] if len(ends) else NEW
        assert ours[:first].tolist() == theirs[: len(ours)][:first].tolist()
        assert np.all(ours[first:] == eos)


def test_sampled_continuations_differ_by_seed_and_are_of_known_tokens():
    decoder = block_decoder(3).in_steps(None, 1.0)
    one, same, other = (
        continuation(decoder, sampling=Sampling(), seed=seed, max_new_tokens=20)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert one.shape == (3, 20) and np.any(one != other)
    assert one.min() >= 0 and one.max() < VOCAB


def unmasked(logits: np.ndarray, unmasking: Unmasking, step: int = 0) -> list[bool]:
    tokens = np.array([[MASK] * len(logits)])
    at_first = np.array([len(logits)])
    found = unmask(tokens, logits[None], step, at_first, jax.random.key(0), GREEDY, unmasking)
    return (np.asarray(found)[0] != MASK).tolist()


def test_tokens_are_taken_by_rising_entropy_while_those_before_stay_within_the_bound():
    sharpness = np.array([9.0, 0.0, 2.0, 4.0])
    logits = sharpness[:, None] * np.array([1.0, 0.0])
    p = 1 / (1 + np.exp(-sharpness))
    entropies = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    sharpest, fourth, second, third = (entropies[i] for i in (0, 1, 2, 3))
    assert sharpest < third < second < fourth
    assert unmasked(logits, Unmasking(entropy_bound=0.0)) == [True, False, False, False]
    bound = sharpest + third
    for slack, is_taken in ((1e-9, True), (-1e-9, False)):
        taken = unmasked(logits, Unmasking(entropy_bound=bound + slack))
        assert taken == [True, False, is_taken, True]
    assert all(unmasked(logits, Unmasking(entropy_bound=9.0)))


def test_steps_share_the_tokens_evenly():
    logits = np.arange(10.0).reshape(5, 2) ** 2
    counts = [sum(unmasked(logits, Unmasking(steps=3), step)) for step in range(3)]
    assert counts == [1, 2, 2]
    assert [sum(unmasked(logits, Unmasking(steps=8), step)) for step in range(8)] == [
        0, 1, 0, 1, 1, 0, 1, 1,
    ]  # fmt: skip


def test_draws_have_the_probabilities_of_the_logits():
    logits = jnp.log(jnp.array([0.6, 0.3, 0.1]))
    drawn = draw(jnp.broadcast_to(logits, (100, 200, 3)), jax.random.key(0), Sampling())
    shares = np.bincount(np.asarray(drawn).ravel(), minlength=3) / drawn.size
    deviations = np.sqrt(np.exp(logits) * (1 - np.exp(logits)) / drawn.size)
    assert np.all(np.abs(shares - np.exp(logits)) < 4 * deviations)


def test_options_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="steps and entropy_bound are for models trained with mask"):
        Decoder.of(*model_of(), NO_EOS).in_steps(4, None)
    with pytest.raises(UserError, match="both say how many tokens a pass decides"):
        block_decoder(2).in_steps(4, 1.0)
    with pytest.raises(UserError, match=r"entropy_bound is -1.0; allowed: 0 or more"):
        block_decoder(2).in_steps(None, -1.0)
