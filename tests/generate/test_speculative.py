"""Speculative decoding against plain decoding, in float64, where no rounding decides a token."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.cases import CASES
from flax.core import meta

from jaxformer.errors import UserError
from jaxformer.generate import decode, reading, speculative
from jaxformer.generate.acceptance import law
from jaxformer.generate.decode import Decoder, DecodingState
from jaxformer.generate.draft_length import PRIOR, DraftLength
from jaxformer.generate.drafts import (
    Draft,
    FirstLayers,
    NGram,
    OtherModel,
    Proposal,
    Turn,
    Verified,
    Weights,
)
from jaxformer.generate.sampling import Sampling
from jaxformer.generate.speculative import SpeculationState, SpeculationStats, SpeculativeDecoder
from jaxformer.generate.ways_back import Choice, Way, choose_way
from jaxformer.model.config import ModelConfig
from jaxformer.model.depth import Depth
from jaxformer.model.depth.stack import Stack
from jaxformer.model.language_model import LanguageModel, build_model

PROMPTS = [[3, 1, 4, 1, 5], [6], [2, 6, 5, 3, 5]]
GREEDY = Sampling(temperature=0)
VOCAB = 7
NO_EOS = -1
NEW = 14


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def small_model(**options: object) -> tuple[LanguageModel, dict]:
    """Two layers whose pattern leaves none; weights large enough that tokens differ."""
    config = {
        "d_model": 12,
        "num_layers": 2,
        "vocab_size": VOCAB,
        "mixer": {"kind": "attention", "num_heads": 2},
        "ffn": {"kind": "swiglu", "d_hidden": 8},
        "init": {"std": 0.5, "output": "plain"},
    }
    model = build_model(ModelConfig.model_validate(config | options), dtype=jnp.float64)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), meta.unbox(params))
    return model, params


@dataclass(frozen=True)
class Scripted(Draft):
    """Knows what plain decoding says. In verification r it is right for r mod (γ + 1) tokens, and
    then says another token; the rows are each one verification further."""

    script: tuple[tuple[int, ...], ...]  # per row
    starts: tuple[int, ...]  # the position of each script's first token

    def start(self, weights: Weights, batch: int, max_length: int) -> jax.Array:
        return jnp.arange(batch)

    def propose(
        self, weights: Weights, state: jax.Array, turn: Turn, count: int, sampling: Sampling
    ) -> Proposal:
        script, starts = jnp.array(self.script, jnp.int32), jnp.array(self.starts)
        places = turn.position[:, None] + 1 - starts[:, None] + jnp.arange(count)
        right = jnp.take_along_axis(script, jnp.minimum(places, script.shape[1] - 1), axis=1)
        is_right = jnp.arange(count) < (state % (count + 1))[:, None]
        tokens = jnp.where(is_right, right, (right + 1) % VOCAB)
        return Proposal(tokens, None, state, turn.cache)

    def settle(self, weights: Weights, state: jax.Array, verified: Verified) -> jax.Array:
        return state + 1


def continuation(decoder: Decoder, prompts: list, **options: object) -> np.ndarray:
    options = {"max_new_tokens": NEW, "sampling": GREEDY} | options
    return np.concatenate(list(decoder.decode(prompts, **options)), axis=1)


def scripted(plain: Decoder, prompts: list, drafted: int) -> SpeculativeDecoder:
    rows = continuation(plain, prompts, max_new_tokens=NEW + 10)
    draft = Scripted(tuple(map(tuple, rows.tolist())), tuple(map(len, prompts)))
    return SpeculativeDecoder.from_decoder(plain, draft, "scripted", draft_tokens=drafted)


# The first case of every mixer, and caches of other shapes.
OF_MIXERS = {CASES[name].config.kind: name for name in reversed(CASES)}
CACHED = (*OF_MIXERS.values(), "attention_window", "attention_sinks")


@pytest.mark.parametrize("name", CACHED)
def test_greedy_output_is_that_of_plain_decoding_for_every_mixer(name: str) -> None:
    """With a draft that is right for 0, 1, 2, 3 or all 4 of its tokens, at another place in every
    row; the window is smaller than the draft."""
    case = CASES[name]
    model, params = small_model(
        num_layers=1, mixer=case.config.model_dump(), positions=case.scheme.model_dump()
    )
    plain = Decoder.of(model, params, NO_EOS)
    first, start = jnp.array([3, 1, 4], jnp.int32), jnp.zeros(3, jnp.int32)
    key = jax.random.key(0)
    state = DecodingState(plain.model.init_cache(3, 24), first, start, start > 0, key)
    one_by_one = jax.jit(partial(decode._decode, plain.model, GREEDY, NO_EOS))
    expected = np.asarray(one_by_one(plain.params, state)[1])

    draft = Scripted(tuple(map(tuple, expected.tolist())), (1, 1, 1))
    target = plain.model.clone(taken_back=5)
    several = jax.jit(partial(speculative._decode, target, draft, 4, GREEDY, NO_EOS))
    caches = (target.init_cache(3, 24), jnp.arange(3))
    state = SpeculationState(*caches, first, start, jnp.full(3, NEW), key)
    state, made = several(Weights(plain.params, None), state)
    np.testing.assert_array_equal(made.made, NEW)
    np.testing.assert_array_equal(made.tokens[:, :NEW], expected[:, :NEW])
    assert made.verifications.tolist() == [5, 4, 5]


HYBRID = {
    "num_layers": 5,
    "mixer": {"kind": "attention", "num_heads": 2, "num_kv_heads": 1, "window": 2, "sinks": 1},
    "pattern": [{}, {"mixer": {"kind": "gated_delta", "num_heads": 2, "head_dim": 4}}],
}


@pytest.fixture(scope="module")
def hybrid() -> Decoder:
    """Two repetitions of a window with a sink and a recurrence, and a tail."""
    with jax.enable_x64(True):
        return Decoder.of(*small_model(**HYBRID), NO_EOS)


@pytest.fixture(scope="module")
def expected(hybrid: Decoder) -> np.ndarray:
    with jax.enable_x64(True):
        return continuation(hybrid, PROMPTS, max_new_tokens=NEW + 10)


def drafts(hybrid: Decoder) -> dict[str, tuple[Draft, dict | None]]:
    """One of each kind; the other model is a hybrid too, which takes back kept states."""
    other, params = small_model(**HYBRID | {"num_layers": 2, "d_model": 8, "vocab_size": VOCAB + 1})
    decoder = Decoder.of(other.clone(num_tokens=VOCAB), params, NO_EOS)
    return {
        "self": (FirstLayers.of(hybrid.model, 2), None),
        "ngram": (NGram(), None),
        "other": (OtherModel(decoder.model, VOCAB), decoder.params),
    }


@pytest.mark.parametrize("kind", ["self", "ngram", "other"])
def test_greedy_output_with_every_draft_is_that_of_plain_decoding(
    hybrid: Decoder, expected: np.ndarray, kind: str
) -> None:
    draft, weights = drafts(hybrid)[kind]
    decoder = SpeculativeDecoder.from_decoder(hybrid, draft, kind, weights, draft_tokens=3)
    stats = SpeculationStats()
    rows = continuation(decoder, PROMPTS, max_new_tokens=NEW + 10, stats=stats)
    np.testing.assert_array_equal(rows, expected)
    assert stats.new_tokens == rows.size
    assert 0 < stats.accepted < stats.proposed == 3 * stats.verifications


def test_a_model_as_its_own_draft_is_always_right(hybrid: Decoder, expected: np.ndarray) -> None:
    """So its caches hold what the target's do, after every verification."""
    draft = OtherModel(hybrid.model, VOCAB)
    decoder = SpeculativeDecoder.from_decoder(hybrid, draft, "", hybrid.params, draft_tokens=3)
    stats = SpeculationStats()
    rows = continuation(decoder, PROMPTS, stats=stats)
    np.testing.assert_array_equal(rows, expected[:, :NEW])
    assert stats.accepted == stats.proposed == 3 * 3 * 4  # 1 + 3 · 4 < 14 in each of three rows


def test_a_row_gets_the_same_tokens_whatever_stands_beside_it(
    hybrid: Decoder, expected: np.ndarray
) -> None:
    """And whatever number is asked for, though verifications give other numbers."""
    together = scripted(hybrid, PROMPTS, drafted=4)
    for wanted in (1, 2, 9, NEW):
        rows = continuation(together, PROMPTS, max_new_tokens=wanted)
        np.testing.assert_array_equal(rows, expected[:, :wanted])
    alone = continuation(scripted(hybrid, PROMPTS[:1], drafted=4), PROMPTS[:1])
    np.testing.assert_array_equal(alone, expected[:1, :NEW])


def test_nothing_follows_end_of_text_in_an_accepted_run(
    hybrid: Decoder, expected: np.ndarray
) -> None:
    """A draft that is always right, so that the end comes first, last and between in what a
    verification accepts."""
    for end in (2, 3, 4):
        row = expected[0]
        eos = int(row[end])
        first = int(np.flatnonzero(row == eos)[0])
        plain = Decoder(hybrid.model, hybrid.params, eos, None, hybrid._programs)
        draft = OtherModel(hybrid.model, VOCAB)
        decoder = SpeculativeDecoder.from_decoder(plain, draft, "", plain.params, draft_tokens=3)
        pieces = continuation(decoder, PROMPTS[:1], max_new_tokens=20)[0]
        np.testing.assert_array_equal(pieces, row[: first + 1])


def test_a_depth_that_takes_nothing_back_is_read_token_by_token(
    hybrid: Decoder, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stack, "takes_back", False)
    monkeypatch.setattr(Stack, "take_back", Depth.take_back)
    monkeypatch.setattr(Stack, "undo", Depth.undo)
    decoder = SpeculativeDecoder.from_decoder(
        hybrid, FirstLayers.of(hybrid.model, 2), "", draft_tokens=3
    )
    stats = SpeculationStats()
    np.testing.assert_array_equal(continuation(decoder, PROMPTS, stats=stats), expected[:, :NEW])
    assert "whole caches are kept, because a depth of kind fixed cannot take" in str(stats)


def test_tokens_that_stay_are_read_again(
    hybrid: Decoder, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row, in which 0 to all 4 tokens stay in turn; and in the draft's own caches too."""
    monkeypatch.setattr(reading, "choose_way", lambda *_: Choice(Way.REPLAY, ""))
    row = continuation(scripted(hybrid, PROMPTS[:1], drafted=4), PROMPTS[:1])
    np.testing.assert_array_equal(row, expected[:1, :NEW])
    draft, weights = drafts(hybrid)["other"]
    decoder = SpeculativeDecoder.from_decoder(hybrid, draft, "", weights, draft_tokens=3)
    np.testing.assert_array_equal(continuation(decoder, PROMPTS[:1]), expected[:1, :NEW])


def test_the_way_back_is_what_reads_less() -> None:
    """Of each of the two layers alike, the mixer has r of the FLOPs."""

    def choice(rows: int, tokens: int, **options: object) -> Choice:
        return choose_way(small_model(**options)[0], rows, tokens)

    recurrent = {"mixer": {"kind": "gated_delta", "num_heads": 2, "head_dim": 4}}
    assert choice(1, 2, **recurrent).way is Way.STATES
    assert choice(1, 17, **recurrent).way is Way.REPLAY
    assert choice(2, 17, **recurrent).way is Way.STATES
    assert choice(1, 17).way is Way.LENGTH
    model = small_model(**recurrent)[0]
    mixers = sum(mixer.flops(1) for mixer in model.depth(parent=None).mixers())
    share = mixers / (model.depth(parent=None).flops(1) + 2 * 12 * VOCAB)
    assert str(choose_way(model, 1, 17)) == (
        f"tokens that stay are read again if others do not, because 17 tokens take about "
        f"{1.7 * (1 - share) + 17 * 0.6 * share:.1f} steps with kept states and up to 3.4 with "
        f"replay"
    )


LOOP = {"kind": "loop", "turns": 2, "before": 1, "inject": "add"}
DEPTHS = {
    "loop": LOOP,
    "loop that tokens leave": LOOP | {"halting": {"kind": "act"}},
    "exits": {"kind": "exits", "exit": 2},
    "mixture": {"kind": "mixture", "every": 2, "capacity": 0.5},
}


@pytest.mark.parametrize("kind", DEPTHS)
def test_greedy_output_is_that_of_plain_decoding_for_every_depth(kind: str) -> None:
    model, params = small_model(
        **HYBRID | {"num_layers": 6 if kind == "exits" else 3}, depth=DEPTHS[kind]
    )
    plain = Decoder.of(model, params, NO_EOS)
    expected = continuation(plain, PROMPTS, max_new_tokens=NEW + 10)
    if kind.startswith("exits"):
        draft = FirstLayers.of(plain.model, 2)
    else:
        draft = Scripted(tuple(map(tuple, expected.tolist())), tuple(map(len, PROMPTS)))
    decoder = SpeculativeDecoder.from_decoder(plain, draft, "", draft_tokens=3)
    stats = SpeculationStats()
    np.testing.assert_array_equal(continuation(decoder, PROMPTS, stats=stats), expected[:, :NEW])
    assert 0 < stats.accepted < stats.proposed
    taken = "whole caches are kept" if kind == "mixture" else "states are kept after every token"
    assert taken in str(stats)


def test_prompts_read_in_chunks_are_continued_as_if_read_whole(
    hybrid: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [np.random.default_rng(0).integers(0, VOCAB, length).tolist() for length in (70, 3)]
    monkeypatch.setattr(decode, "PAIRS_AT_ONCE", 2 * 64 * 192)
    expected = continuation(hybrid, prompts)
    for draft, weights in list(drafts(hybrid).values())[1:]:
        decoder = SpeculativeDecoder.from_decoder(hybrid, draft, "", weights, draft_tokens=3)
        np.testing.assert_array_equal(continuation(decoder, prompts), expected)


def test_sampled_sequences_have_the_targets_law() -> None:
    """3,000 rows of three tokens after one prompt, drafted by the first of two layers: the counts
    of all 64 sequences, within five deviations."""
    rows, sampling = 3000, Sampling(temperature=0.8, top_k=3)
    model, params = small_model(vocab_size=4)
    plain = Decoder.of(model, params, NO_EOS)
    draft = FirstLayers.of(plain.model, 1)
    decoder = SpeculativeDecoder.from_decoder(plain, draft, "self:1", draft_tokens=2)
    stats = SpeculationStats()
    found = continuation(
        decoder, [[1, 2]] * rows, max_new_tokens=3, sampling=sampling, seed=3, stats=stats
    )
    every = np.array(list(itertools.product(range(4), repeat=3)))
    contexts = np.concatenate([np.tile([1, 2], (64, 1)), every], axis=1)
    laws = law(model.apply({"params": params}, jnp.array(contexts))[:, 1:4], sampling)
    expected = np.prod(np.take_along_axis(np.asarray(laws), every[..., None], axis=2), axis=(1, 2))
    counts = np.bincount(found @ [16, 4, 1], minlength=64)
    assert (np.abs(counts - rows * expected) <= 5 * np.sqrt(rows * expected) + 1e-9).all()
    assert np.count_nonzero(counts > 20) > 8
    assert 0.2 < stats.accepted / stats.proposed < 0.95


def test_what_followed_the_longest_repetition_is_proposed() -> None:
    def proposed(row: list[int], count: int) -> list[int]:
        padded = jnp.array([-1, -1, *row, *[0] * 5])
        return NGram(longest=3)._following(padded, jnp.int32(len(row) + 1), count).tolist()

    assert proposed([1, 2, 3, 4, 9, 3, 5, 1, 2, 3], 4) == [4, 9, 3, 5]  # not what follows `9, 3`
    assert proposed([3, 4, 3, 5, 3], 2) == [5, 3]  # the latest of the same length
    assert proposed([7, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]  # what followed ends, and repeats
    assert proposed([5], 2) == [5, 5]  # there is nothing else


def test_the_draft_length_follows_what_is_accepted() -> None:
    length = DraftLength(draft_cost=0.2)
    assert length.now == 4
    length.learn(verifications=100, accepted=395, whole=97)
    assert length.now == 8
    length.learn(verifications=1000, accepted=100, whole=0)
    assert length.now == 2
    # E(2) = 1 + a + a², in 1.7 + 2 (0.2 + 0.07) steps.
    share = (PRIOR / 2 + 495) / (PRIOR + 398 + 1100)
    assert length.speed(2) == pytest.approx((1 + share + share**2) / (1.7 + 2 * 0.27))
    fixed = DraftLength(draft_cost=0.2, fixed=3)
    fixed.learn(verifications=100, accepted=300, whole=100)
    assert fixed.now == 3


def test_a_draft_length_out_of_range_is_refused(hybrid: Decoder) -> None:
    for wrong in (0, 33):
        with pytest.raises(UserError, match=f"draft_tokens is {wrong}; allowed: 1 to 32"):
            SpeculativeDecoder.from_decoder(hybrid, NGram(), "ngram", draft_tokens=wrong)


def test_first_layers_that_are_not_there_are_refused(hybrid: Decoder) -> None:
    looped = small_model(**HYBRID, depth=LOOP)[0]
    with pytest.raises(UserError, match="but the depth of this one is loop; allowed: model.depth"):
        FirstLayers.of(looped, 2)
    for wrong in (0, 1, 3, 5, 6):
        message = (
            rf"draft 'self:{wrong}' is out of range; allowed: 2, 4 of the 5 layers, in whole "
            rf"repetitions of the pattern of 2"
        )
        with pytest.raises(UserError, match=message):
            FirstLayers.of(hybrid.model, wrong)
