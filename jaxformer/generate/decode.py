"""Prefill and decoding with the mixers' caches, for a batch of prompts of different lengths."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxformer.errors import UserError
from jaxformer.generate.sampling import Sampling, sample
from jaxformer.memory import check_fits, program_bytes
from jaxformer.model.depth.stack import separate_layers
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.positions import LearnedPositionsConfig
from jaxformer.parallel.rules import bytes_per_device, put_rows, whole

# Lengths are rounded up to a multiple of this, so that few prompts compile anew.
LENGTH_STEP = 64
# The most pairs (token read at once, place in the cache) over the whole batch. Attention holds some
# bytes per pair and head, so long prompts are read one chunk at a time.
PAIRS_AT_ONCE = 2**22
# Tokens decoded between two checks by the host: enough to hide their cost, few enough to stream.
TOKENS_AT_ONCE = 16


@dataclass
class Stats:
    """Seconds and counts of one call. The other times do not include compilation."""

    compile_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    prompt_tokens: int = 0
    new_tokens: int = 0

    @property
    def decoded_per_second(self) -> float:
        return self.new_tokens / max(self.decode_seconds, 1e-9)

    def __str__(self) -> str:
        prefill = ""
        if self.prefill_seconds:
            rate = self.prompt_tokens / self.prefill_seconds
            prefill = f"prefill {self.prompt_tokens} tokens at {rate:,.0f}/s; "
        decoded = f" at {self.decoded_per_second:,.0f}/s" if self.decode_seconds else ""
        return (
            f"{prefill}decoded {self.new_tokens} tokens{decoded}; "
            f"compiled in {self.compile_seconds:.1f} s"
        )


class DecodingState(NamedTuple):
    """What is carried from one decoded token to the next, on the device."""

    cache: Any
    token: jax.Array  # [batch], the newest, not yet in the cache
    position: jax.Array  # [batch], its place
    done: jax.Array  # [batch], whether end-of-text has come
    key: jax.Array


class _Task(NamedTuple):
    """Prompts as arrays, and how they are read."""

    name: str  # for messages
    rows: tuple  # the prompts' tokens [batch, length], and where they start [batch]
    chunk: int  # tokens of every row that are read at once
    max_length: int  # of the caches


@dataclass(frozen=True)
class Decoder:
    """A model ready to decode: its parameters separate per layer, its programs compiled once per
    shape."""

    model: LanguageModel
    params: Any
    eos_id: int
    mesh: Mesh | None = None
    _programs: dict = field(default_factory=dict)

    @classmethod
    def of(cls, model: LanguageModel, params: Any, eos_id: int, mesh: Mesh | None = None) -> Self:
        """From a scanned model and its parameters, which lie on `mesh`."""
        return cls(model.clone(layout="separate"), jax.jit(separate_layers)(params), eos_id, mesh)

    def in_steps(self, steps: int | None, entropy_bound: float | None) -> Self:
        """The decoder for `Unmasking(steps, entropy_bound)`.

        Raises:
            UserError: it decodes one token after another, or the values are not allowed.
        """
        raise UserError(
            "steps and entropy_bound are for models trained with masked_diffusion or "
            "block_diffusion, which decide several tokens in a pass; leave them out: this one "
            "decodes one token after another"
        )

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
        """Continue the prompts; yields pieces [batch, some tokens] until all are complete.

        A row that has ended is filled with end-of-text. Rows are split over the mesh's data axes
        where these divide them.

        Args:
            padded_length: prompts are padded to at least this length, so that few lengths compile.

        Raises:
            UserError: an empty prompt, more tokens than a learned position table has rows, or more
                than the device has memory for.
        """
        stats = Stats() if stats is None else stats
        task = self._task(prompts, max_new_tokens, padded_length)
        prefill = partial(_prefill, self.model, task.chunk, task.max_length, sampling, self.eos_id)
        arguments = (self.params, *task.rows, jax.random.key(seed))
        state = self._run("prefill", prefill, arguments, stats, task.name)
        stats.prompt_tokens += sum(len(prompt) for prompt in prompts)
        yield whole(state.token)[:, None]

        decode = self._program(sampling)
        made = 1
        stats.new_tokens += len(prompts)
        while made < max_new_tokens and not np.all(whole(state.done)):
            state, more = self._run("decode", decode, (self.params, state), stats, task.name)
            piece = self._tokens(more, stats)[:, : max_new_tokens - made]
            made += piece.shape[1]
            stats.new_tokens += piece.size
            yield piece

    def new_stats(self) -> Stats:
        """What `decode` can count in."""
        return Stats()

    def report(
        self,
        stats: Stats,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        seed: int = 0,
    ) -> str:
        """What is said of a call of `decode` that measured `stats`."""
        return str(stats)

    def _program(self, sampling: Sampling) -> Callable:
        """(parameters, state) → (state, what `_tokens` reads)."""
        return partial(_decode, self.model, sampling, self.eos_id)

    def _tokens(self, made: Any, stats: Stats) -> np.ndarray:
        """The new tokens [batch, TOKENS_AT_ONCE]."""
        return whole(made)

    @property
    def _most_unwanted(self) -> int:
        """How many tokens behind the last that is wanted may be in the caches."""
        return TOKENS_AT_ONCE

    def _task(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, padded_length: int
    ) -> "_Task":
        name = self._begin(prompts, max_new_tokens)
        wanted = max([padded_length, *map(len, prompts)])
        chunk = chunk_length(len(prompts), wanted, max_new_tokens)
        padded = round_up(wanted, chunk)
        tokens = np.zeros((len(prompts), padded), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, padded - len(prompt) :] = prompt  # ends align, so all continue together
        starts = np.array([padded - len(prompt) for prompt in prompts], np.int32)
        max_length = round_up(padded + max_new_tokens + self._most_unwanted)
        return _Task(name, (self._put(tokens), self._put(starts)), chunk, max_length)

    def _begin(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> str:
        """Check the prompts; what is going to be done, in words."""
        longest = max(len(prompt) for prompt in prompts)
        if min(len(prompt) for prompt in prompts) == 0 or max_new_tokens < 1:
            raise UserError("a prompt has no tokens, or max_new_tokens is below 1; give at least 1")
        self._check_length(longest + max_new_tokens)
        rows = f"{len(prompts)} prompt{'s' if len(prompts) > 1 else ''} of up to {longest:,} tokens"
        return f"continuing {rows} by {max_new_tokens:,}"

    def _run(self, name: str, function: Any, arguments: tuple, stats: Stats, work: str) -> Any:
        """Call the compiled `function`; a decoding state among the arguments is donated."""
        shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), arguments[1:])
        case = (name, function.args, str(shapes))
        start = time.perf_counter()
        if case not in self._programs:
            if isinstance(arguments[1], tuple):  # a state, which comes back with the same sharding
                places = jax.tree.map(lambda leaf: leaf.sharding, arguments[1])
                jitted = jax.jit(function, donate_argnums=1, out_shardings=(places, None))
            else:
                jitted = jax.jit(function)
            compiled = jitted.lower(*arguments).compile()
            self._check_memory(compiled, arguments, work)
            self._programs[case] = compiled
            stats.compile_seconds += time.perf_counter() - start
            start = time.perf_counter()
        result = jax.block_until_ready(self._programs[case](*arguments))
        field_name = f"{name}_seconds"
        setattr(stats, field_name, getattr(stats, field_name) + time.perf_counter() - start)
        return result

    def _put(self, rows: np.ndarray) -> np.ndarray | jax.Array:
        return rows if self.mesh is None else put_rows(rows, self.mesh)

    def _check_memory(self, compiled: jax.stages.Compiled, arguments: tuple, work: str) -> None:
        leaves = [leaf for leaf in jax.tree.leaves(arguments) if isinstance(leaf, jax.Array)]
        held = bytes_per_device(leaves, [leaf.sharding for leaf in leaves])
        check_fits(
            (jax.local_devices() if self.mesh is None else self.mesh.local_devices)[0],
            program_bytes(compiled),
            f"{work} takes",
            "ask for fewer new tokens, shorter prompts, or fewer of them at once",
            held=held,
        )

    def _check_length(self, length: int) -> None:
        positions = self.model.config.positions
        if isinstance(positions, LearnedPositionsConfig) and length > positions.max_length:
            raise UserError(
                f"the longest prompt and its new tokens are {length} together, but "
                f"model.positions has max_length {positions.max_length}; ask for fewer new tokens"
            )


def round_up(length: int, step: int = LENGTH_STEP) -> int:
    """The nearest multiple of `step` that is not below `length`."""
    return -(-length // step) * step


def chunk_length(batch: int, prompt: int, new_tokens: int) -> int:
    """How many tokens of every row are read at once: all if the pairs are few enough, otherwise
    chunks of one length, with less than LENGTH_STEP of padding per chunk."""
    context = round_up(prompt + new_tokens + TOKENS_AT_ONCE)
    most = max(LENGTH_STEP, PAIRS_AT_ONCE // (batch * context))
    chunks = -(-prompt // most)
    return round_up(-(-prompt // chunks))


def _prefill(
    model: LanguageModel,
    chunk: int,
    max_length: int,
    sampling: Sampling,
    eos_id: int,
    params: Any,
    tokens: jax.Array,
    starts: jax.Array,
    key: jax.Array,
) -> DecodingState:
    """Read prompts [batch, length] that begin at `starts` [batch], `chunk` tokens of each at once,
    and draw the next token of each."""

    def read(cache: Any, tokens: jax.Array, offsets: jax.Array) -> tuple[jax.Array, Any]:
        segment_ids = (offsets >= 0).astype(jnp.int32)
        positions = jnp.maximum(offsets, 0)
        return model.apply({"params": params}, tokens, positions, segment_ids, cache, method="step")

    batch, length = tokens.shape
    cache = model.init_cache(batch, max_length)
    logits, cache = read_in_chunks(read, cache, chunk, tokens, starts)
    key, now = jax.random.split(key)
    token = sample(logits, now, sampling).astype(jnp.int32)
    return DecodingState(cache, token, length - starts, token == eos_id, key)


def read_in_chunks(
    read: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]],
    cache: Any,
    chunk: int,
    tokens: jax.Array,
    starts: jax.Array,
) -> tuple[jax.Array, Any]:
    """What `read` returns of the last `chunk` of prompts [batch, length] that begin at `starts`
    [batch], and the cache after all of them.

    Args:
        read: (cache, tokens, their positions, negative in padding) → (an array, the longer cache).
    """
    batch, length = tokens.shape
    offsets = jnp.arange(length, dtype=jnp.int32) - starts[:, None]  # [batch, length]
    if chunk == length:
        return read(cache, tokens, offsets)
    chunks = [jnp.moveaxis(x.reshape(batch, -1, chunk), 1, 0) for x in (tokens, offsets)]
    last = jax.eval_shape(read, cache, *(each[0] for each in chunks))[0]
    start = (jnp.zeros(last.shape, last.dtype), cache)
    return jax.lax.scan(lambda before, chunk: (read(before[1], *chunk), None), start, chunks)[0]


def _decode(
    model: LanguageModel, sampling: Sampling, eos_id: int, params: Any, state: DecodingState
) -> tuple[DecodingState, jax.Array]:
    """TOKENS_AT_ONCE more tokens of every row: (state, [batch, tokens])."""

    def one(state: DecodingState, _: None) -> tuple[DecodingState, jax.Array]:
        logits, cache = model.apply(
            {"params": params},
            state.token[:, None],
            state.position[:, None],
            jnp.ones_like(state.token)[:, None],
            state.cache,
            method="step",
        )
        key, now = jax.random.split(state.key)
        token = jnp.where(state.done, eos_id, sample(logits, now, sampling)).astype(jnp.int32)
        done = state.done | (token == eos_id)
        return DecodingState(cache, token, state.position + 1, done, key), token

    state, tokens = jax.lax.scan(one, state, length=TOKENS_AT_ONCE)
    return state, tokens.T
