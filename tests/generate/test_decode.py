"""Cached decoding against the whole model, run anew for every token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxformer import memory
from jaxformer.errors import UserError
from jaxformer.generate import decode
from jaxformer.generate.decode import Decoder, Stats
from jaxformer.generate.sampling import Sampling
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel, build_model

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
GREEDY = Sampling(temperature=0)
NO_EOS = -1


def small_model(**options: object) -> tuple[LanguageModel, dict]:
    """A hybrid with a window, whose pattern leaves a tail; weights large enough to differ."""
    config = {
        "d_model": 16,
        "num_layers": 3,
        "vocab_size": 11,
        "mixer": {"kind": "attention", "num_heads": 2, "num_kv_heads": 1, "window": 4, "sinks": 1},
        "ffn": {"kind": "swiglu", "d_hidden": 24},
        "pattern": [{}, {"mixer": {"kind": "min_gru"}}],
        "init": {"std": 0.5, "output": "plain"},
    }
    model = build_model(ModelConfig.model_validate(config | options))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    return model, meta.unbox(params)


@pytest.fixture(scope="module")
def hybrid() -> tuple[LanguageModel, dict]:
    return small_model()


@pytest.fixture(scope="module")
def decoder(hybrid: tuple[LanguageModel, dict]) -> Decoder:
    return Decoder.of(*hybrid, NO_EOS)


def continuation(decoder: Decoder, prompts: list, **options: object) -> np.ndarray:
    options = {"max_new_tokens": 20, "sampling": GREEDY} | options
    return np.concatenate(list(decoder.decode(prompts, **options)), axis=1)


def test_greedy_decoding_equals_uncached_argmax(hybrid: tuple, decoder: Decoder) -> None:
    model, params = hybrid
    forward = jax.jit(model.apply)
    for prompt, row in zip(PROMPTS, continuation(decoder, PROMPTS), strict=True):
        tokens = jnp.zeros((1, 32), jnp.int32).at[0, : len(prompt)].set(jnp.array(prompt))
        length = len(prompt)
        for token in row:
            logits = forward({"params": params}, tokens)
            assert int(jnp.argmax(logits[0, length - 1])) == token
            tokens, length = tokens.at[0, length].set(token), length + 1
    assert len(set(row.tolist())) > 2  # it did not get stuck on one token


def test_padding_of_the_vocabulary_is_never_drawn(hybrid: tuple) -> None:
    """A run's vocabulary of 11 with a tokenizer of 5."""
    model, params = hybrid
    padded = build_model(model.config, vocab_size=5)
    assert (padded.vocab_size, padded.num_tokens, model.num_tokens) == (11, 5, None)
    decoder = Decoder.of(padded, params, NO_EOS)
    for sampling in (GREEDY, Sampling(temperature=3.0)):
        assert continuation(decoder, PROMPTS, sampling=sampling).max() < 5


def test_a_prompt_in_a_batch_is_continued_as_if_alone(decoder: Decoder) -> None:
    together = continuation(decoder, PROMPTS)
    for prompt, row in zip(PROMPTS, together, strict=True):
        np.testing.assert_array_equal(continuation(decoder, [prompt])[0], row)


def test_prompts_read_in_chunks_are_continued_as_if_read_whole(
    hybrid: tuple, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three chunks of 64 for 130 tokens; another row's first chunks are all padding."""
    prompts = [np.random.default_rng(0).integers(0, 11, length).tolist() for length in (130, 3, 70)]
    whole = continuation(decoder, prompts)
    monkeypatch.setattr(decode, "PAIRS_AT_ONCE", 3 * 64 * 192)
    in_chunks = Decoder.of(*hybrid, NO_EOS)
    np.testing.assert_array_equal(continuation(in_chunks, prompts), whole)
    of_whole, of_chunks = (
        next(program for case, program in d._programs.items() if case[0] == "prefill")
        for d in (decoder, in_chunks)
    )
    assert "while" in of_chunks.as_text() and of_chunks is not of_whole


def test_less_is_read_at_once_the_more_pairs_there_are() -> None:
    assert decode.chunk_length(1, 1000, 256) == 1024  # whole
    assert decode.chunk_length(1, 16_000, 256) == 256
    assert decode.chunk_length(8, 4_000, 64) == 128
    assert decode.chunk_length(64, 100_000, 64) == 64
    for batch, prompt in ((1, 2100), (3, 5000), (1, 9001)):
        chunk = decode.chunk_length(batch, prompt, 100)
        assert batch * (chunk - 64) * (prompt + 116) <= decode.PAIRS_AT_ONCE
        assert -(-prompt // chunk) * chunk - prompt < 64 * -(-prompt // chunk)


def test_a_generation_beyond_the_memory_is_refused_with_the_figures(
    hybrid: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 2048)
    message = (
        r"continuing 3 prompts of up to 9 tokens by 20 takes [\d.]+ KiB per device, but a cpu "
        r"device here has [\d.]+ KiB; ask for fewer new tokens, shorter prompts, or fewer of them"
    )
    with pytest.raises(UserError, match=message):
        continuation(Decoder.of(*hybrid, NO_EOS), PROMPTS)


def test_a_seed_decides_the_sample(decoder: Decoder) -> None:
    options = {"sampling": Sampling(temperature=1.0)}
    first, again, other = (continuation(decoder, PROMPTS, seed=s, **options) for s in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_row_ends_at_end_of_text_and_decoding_when_all_have(hybrid: tuple) -> None:
    free = continuation(Decoder.of(*hybrid, NO_EOS), PROMPTS[:1])[0]
    end = next(place for place, token in enumerate(free) if token != free[0])
    rows = continuation(Decoder.of(*hybrid, int(free[end])), PROMPTS[:1], max_new_tokens=100)
    np.testing.assert_array_equal(rows[0, : end + 1], free[: end + 1])
    assert (rows[0, end:] == free[end]).all()
    # One token from the prefill, then sixteen at once until the piece that has the end.
    assert rows.shape[1] == 1 + 16 * -(-end // 16)


def test_stats_count_tokens(decoder: Decoder) -> None:
    stats = Stats()
    continuation(decoder, PROMPTS, max_new_tokens=18, stats=stats)
    assert (stats.prompt_tokens, stats.new_tokens) == (15, 3 * 18)
    assert stats.prefill_seconds > 0 and stats.decode_seconds > 0


def test_more_tokens_than_learned_positions_are_refused() -> None:
    model, params = small_model(positions={"kind": "learned", "max_length": 16})
    with pytest.raises(UserError, match="29 together, but model.positions has max_length 16"):
        continuation(Decoder.of(model, params, NO_EOS), PROMPTS)
