"""Decoding of models that predict several hidden tokens at once, a continuation or a block."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.generate.decode import Decoder, Stats, chunk_length, round_up
from jaxformer.generate.sampling import Sampling
from jaxformer.generate.unmasking import Unmasking, unmask
from jaxformer.model.inputs import MASK
from jaxformer.model.language_model import LanguageModel
from jaxformer.ops.attention import Order
from jaxformer.parallel.rules import whole

# Above every place in a cache: a token of this rank sees all that is there.
SEES_ALL = 2**30

ONE_BY_ONE = Unmasking()


@dataclass
class DiffusionStats(Stats):
    """Counts of one call of a diffusion decoder."""

    passes: int = 0  # over what is decoded at once

    def __str__(self) -> str:
        rate = self.new_tokens / max(self.passes, 1)
        return f"{super().__str__()}\n{self.passes} passes, {rate:.2f} tokens per pass"


@dataclass(frozen=True)
class DiffusionDecoder(Decoder):
    """A model that predicts hidden tokens, ready to decode."""

    unmasking: Unmasking = ONE_BY_ONE

    def in_steps(self, steps: int | None, entropy_bound: float | None) -> Self:
        return replace(self, unmasking=Unmasking(steps, entropy_bound))

    def new_stats(self) -> DiffusionStats:
        return DiffusionStats()


class MaskedDiffusionDecoder(DiffusionDecoder):
    """All new tokens are hidden at first, and become known over several passes over the whole row,
    without caches."""

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        seed: int = 0,
        stats: Stats | None = None,
        padded_length: int = 0,
    ) -> Iterator[np.ndarray]:
        """As `Decoder.decode`, in one piece: nothing is known before all is."""
        stats = Stats() if stats is None else stats
        work = self._begin(prompts, max_new_tokens)
        longest = max([padded_length, *map(len, prompts)])
        tokens = np.zeros((len(prompts), round_up(longest + max_new_tokens)), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
            tokens[row, len(prompt) : len(prompt) + max_new_tokens] = MASK
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        function = partial(_denoise, self.model, max_new_tokens, sampling, self.unmasking)
        key = jax.random.key(seed)
        arguments = (self.params, self._put(tokens), self._put(lengths), key)
        new, passes = map(whole, self._run("decode", function, arguments, stats, work))
        stats.prompt_tokens += sum(len(prompt) for prompt in prompts)
        stats.new_tokens += new.size
        _count(passes, stats)
        yield filled_after_end(new, self.eos_id)


def _count(passes: np.ndarray, stats: Stats) -> None:
    if isinstance(stats, DiffusionStats):
        stats.passes += int(passes)


def _denoise(
    model: LanguageModel,
    max_new_tokens: int,
    sampling: Sampling,
    unmasking: Unmasking,
    params: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The new tokens [batch, max_new_tokens] of rows whose prompts have `lengths` [batch], and the
    number of passes."""
    in_row = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    positions = jnp.broadcast_to(in_row, tokens.shape)
    # The last new token is only predicted, as that of a document in training.
    segment_ids = (in_row < lengths[:, None] + max_new_tokens - 1).astype(jnp.int32)
    order = Order(jnp.zeros_like(tokens), jnp.zeros(tokens.shape, jnp.bool_))
    at_first = jnp.full(len(tokens), max_new_tokens, jnp.int32)
    unmasking = unmasking if unmasking != ONE_BY_ONE else Unmasking(steps=max_new_tokens)

    def one(carried: tuple) -> tuple:
        tokens, key, step = carried
        logits, _ = model.apply(
            {"params": params}, tokens, positions, segment_ids, order, method="predict"
        )
        key, now = jax.random.split(key)
        later = tokens[:, 1:]  # position i predicts token i + 1
        later = unmask(later, logits[:, :-1], step, at_first, now, sampling, unmasking)
        return tokens.at[:, 1:].set(later), key, step + 1

    start = (tokens, key, jnp.int32(0))
    tokens, _, passes = jax.lax.while_loop(lambda c: jnp.any(c[0] == MASK), one, start)
    places = lengths[:, None] + jnp.arange(max_new_tokens, dtype=jnp.int32)
    return jnp.take_along_axis(tokens, places, axis=1), passes


class BlockState(NamedTuple):
    """What is carried from one block to the next, on the device."""

    cache: Any  # of the clean blocks before
    tokens: jax.Array  # [batch, block + 1]: the block's inputs, and the first of the next one's
    position: jax.Array  # [batch], the place of the first
    key: jax.Array


@dataclass(frozen=True)
class BlockDiffusionDecoder(DiffusionDecoder):
    """Blocks from left to right, each in several passes that see the cache of earlier ones; when
    all its tokens are known, one more pass adds it to the cache. `steps` are those of a block."""

    block: int = 1

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        seed: int = 0,
        stats: Stats | None = None,
        padded_length: int = 0,
    ) -> Iterator[np.ndarray]:
        """As `Decoder.decode`; pieces are about a block long."""
        stats = Stats() if stats is None else stats
        work = self._begin(prompts, max_new_tokens)
        block = self.block
        # Whole blocks of a prompt are clean; the block of its last token begins the continuation.
        clean = [(len(prompt) - 1) // block * block for prompt in prompts]
        longest = max([*clean, padded_length])
        chunk = round_up(chunk_length(len(prompts), max(longest, 1), max_new_tokens), block)
        padded = round_up(longest, chunk)
        tokens = np.zeros((len(prompts), padded), np.int32)
        first = np.full((len(prompts), block + 1), MASK, np.int32)
        for row, (prompt, count) in enumerate(zip(prompts, clean, strict=True)):
            tokens[row, padded - count :] = prompt[:count]
            first[row, : len(prompt) - count] = prompt[count:]
        counts = np.array(clean, np.int32)
        max_length = round_up(padded + round_up(max_new_tokens + 2 * block, block))
        function = partial(_read_blocks, self.model, block, chunk, max_length)
        arguments = (
            self.params,
            self._put(tokens),
            self._put(counts),
            self._put(first),
            jax.random.key(seed),
        )
        state = self._run("prefill", function, arguments, stats, work)
        stats.prompt_tokens += sum(len(prompt) for prompt in prompts)

        # How many of the first block's targets are in the prompt already.
        known = [len(prompt) - count - 1 for prompt, count in zip(prompts, clean, strict=True)]
        rows, yielded = [np.zeros(0, np.int32)] * len(prompts), 0
        decode = partial(_decode_block, self.model, block, sampling, self.unmasking)
        while yielded < max_new_tokens:
            state, made = self._run("decode", decode, (self.params, state), stats, work)
            piece, passes = map(whole, made)
            _count(passes, stats)
            rows = [
                np.concatenate([row, new[skip:]])
                for row, new, skip in zip(rows, piece, known, strict=True)
            ]
            known = [0] * len(rows)
            made = min([max_new_tokens, *map(len, rows)])
            if made == yielded:
                continue
            so_far = filled_after_end(np.stack([row[:made] for row in rows]), self.eos_id)
            stats.new_tokens += so_far[:, yielded:].size
            yield so_far[:, yielded:]
            yielded = made
            if np.all(np.any(so_far == self.eos_id, axis=1)):
                return


def _read_blocks(
    model: LanguageModel,
    block: int,
    chunk: int,
    max_length: int,
    params: Any,
    tokens: jax.Array,
    counts: jax.Array,
    first: jax.Array,
    key: jax.Array,
) -> BlockState:
    """Read the clean blocks of prompts, the last counts [batch] of tokens [batch, length], `chunk`
    tokens of each at once."""
    batch, length = tokens.shape
    places = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), tokens.shape)
    offsets = places - (length - counts[:, None])
    rank = places + block - 1 - offsets % block  # the place of the last token in the block

    def read(cache: Any, part: tuple) -> tuple[Any, None]:
        tokens, offsets, rank = part
        order = Order(rank, jnp.zeros(rank.shape, jnp.bool_))
        rows = (tokens, jnp.maximum(offsets, 0), (offsets >= 0).astype(jnp.int32), order, cache)
        _, cache = model.apply({"params": params}, *rows, method="predict")
        return cache, None

    cache = model.init_cache(batch, max_length)
    chunks = [jnp.moveaxis(x.reshape(batch, -1, chunk), 1, 0) for x in (tokens, offsets, rank)]
    if length:
        cache, _ = jax.lax.scan(read, cache, tuple(chunks))
    return BlockState(cache, first, counts, key)


def _decode_block(
    model: LanguageModel,
    block: int,
    sampling: Sampling,
    unmasking: Unmasking,
    params: Any,
    state: BlockState,
) -> tuple[BlockState, tuple[jax.Array, jax.Array]]:
    """The next block: (state, (the targets of the block [batch, block], the number of passes))."""
    in_block = jnp.arange(block, dtype=jnp.int32)
    positions = state.position[:, None] + in_block
    order = Order(jnp.full_like(positions, SEES_ALL), jnp.zeros(positions.shape, jnp.bool_))

    def predict(tokens: jax.Array) -> tuple[jax.Array, Any]:
        rows = (tokens[:, :block], positions, jnp.ones_like(positions), order, state.cache)
        return model.apply({"params": params}, *rows, method="predict")

    at_first = jnp.sum(state.tokens == MASK, axis=1, dtype=jnp.int32)

    def one(carried: tuple) -> tuple:
        tokens, key, step = carried
        logits, _ = predict(tokens)  # the cache of noisy tokens is dropped
        key, now = jax.random.split(key)
        targets = unmask(tokens[:, 1:], logits, step, at_first, now, sampling, unmasking)
        return tokens.at[:, 1:].set(targets), key, step + 1

    start = (state.tokens, state.key, jnp.int32(0))
    tokens, key, passes = jax.lax.while_loop(lambda c: jnp.any(c[0] == MASK), one, start)
    _, cache = predict(tokens)
    hidden = jnp.full_like(tokens[:, 1:], MASK)
    following = jnp.concatenate([tokens[:, block:], hidden], axis=1)
    state = BlockState(cache, following, state.position + block, key)
    return state, (tokens[:, 1:], passes + 1)


def filled_after_end(rows: np.ndarray, eos_id: int) -> np.ndarray:
    """Rows [batch, tokens], filled with end-of-text from their first one on."""
    ended = np.cumsum(rows == eos_id, axis=1) > 0
    return np.where(ended, eos_id, rows)
