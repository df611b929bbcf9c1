"""Prefill and decoding with the mixers' caches, for a batch of prompts of different lengths."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

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
from jaxformer.parallel.mesh import data_shards
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
    decode_steps: int = 0

    def __str__(self) -> str:
        prefill = self.prompt_tokens / max(self.prefill_seconds, 1e-9)
        decode = self.new_tokens / max(self.decode_seconds, 1e-9)
        return (
            f"prefill {self.prompt_tokens} tokens at {prefill:,.0f}/s; decoded {self.new_tokens} "
            f"tokens at {decode:,.0f}/s; compiled in {self.compile_seconds:.1f} s"
        )


class DecodingState(NamedTuple):
    """What is carried from one decoded token to the next, on the device."""

    cache: Any
    token: jax.Array  # [batch], the newest, not yet in the cache
    position: jax.Array  # [batch], its place
    done: jax.Array  # [batch], whether end-of-text has come
    key: jax.Array


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
    def of(
        cls, model: LanguageModel, params: Any, eos_id: int, mesh: Mesh | None = None
    ) -> "Decoder":
        """From a scanned model and its parameters, which lie on `mesh`."""
        return cls(model.clone(layout="separate"), jax.jit(separate_layers)(params), eos_id, mesh)

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
        longest = max(len(prompt) for prompt in prompts)
        if min(len(prompt) for prompt in prompts) == 0 or max_new_tokens < 1:
            raise UserError("a prompt has no tokens, or max_new_tokens is below 1; give at least 1")
        self._check_length(longest + max_new_tokens)
        wanted = max(longest, padded_length)
        chunk = chunk_length(len(prompts), wanted, max_new_tokens)
        padded = _round_up(wanted, chunk)
        tokens = np.zeros((len(prompts), padded), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, padded - len(prompt) :] = prompt  # ends align, so all continue together
        starts = np.array([padded - len(prompt) for prompt in prompts], np.int32)
        max_length = _round_up(padded + max_new_tokens + TOKENS_AT_ONCE)

        rows = f"{len(prompts)} prompt{'s' if len(prompts) > 1 else ''} of up to {longest:,} tokens"
        work = f"continuing {rows} by {max_new_tokens:,}"
        prefill = partial(_prefill, self.model, chunk, max_length, sampling, self.eos_id)
        state = self._run(
            "prefill",
            prefill,
            (self.params, self._put(tokens), self._put(starts), jax.random.key(seed)),
            stats,
            work,
        )
        stats.prompt_tokens += sum(len(prompt) for prompt in prompts)
        yield whole(state.token)[:, None]

        decode = partial(_decode, self.model, sampling, self.eos_id)
        made = 1
        stats.new_tokens += len(prompts)
        while made < max_new_tokens and not np.all(whole(state.done)):
            state, piece = self._run("decode", decode, (self.params, state), stats, work)
            piece = whole(piece)[:, : max_new_tokens - made]
            made += piece.shape[1]
            stats.new_tokens += piece.size
            yield piece

    def _run(self, name: str, function: Any, arguments: tuple, stats: Stats, work: str) -> Any:
        """Call the compiled `function`; a decoding state among the arguments is donated."""
        shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), arguments[1:])
        case = (name, function.args, str(shapes))
        start = time.perf_counter()
        if case not in self._programs:
            if name == "decode":  # the state comes back with the same sharding
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
        if self.mesh is None or len(rows) % data_shards(self.mesh.shape):
            return rows
        return put_rows(rows, self.mesh)

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


def _round_up(length: int, step: int = LENGTH_STEP) -> int:
    return -(-length // step) * step


def chunk_length(batch: int, prompt: int, new_tokens: int) -> int:
    """How many tokens of every row are read at once: all if the pairs are few enough, otherwise
    chunks of one length, with less than LENGTH_STEP of padding per chunk."""
    context = _round_up(prompt + new_tokens + TOKENS_AT_ONCE)
    most = max(LENGTH_STEP, PAIRS_AT_ONCE // (batch * context))
    chunks = -(-prompt // most)
    return _round_up(-(-prompt // chunks))


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
    batch, length = tokens.shape
    offsets = jnp.arange(length, dtype=jnp.int32) - starts[:, None]  # [batch, length]

    def read(cache: Any, tokens: jax.Array, offsets: jax.Array) -> tuple[jax.Array, Any]:
        segment_ids = (offsets >= 0).astype(jnp.int32)
        positions = jnp.maximum(offsets, 0)
        return model.apply({"params": params}, tokens, positions, segment_ids, cache, method="step")

    cache = model.init_cache(batch, max_length)
    if chunk == length:
        logits, cache = read(cache, tokens, offsets)
    else:
        chunks = [jnp.moveaxis(x.reshape(batch, -1, chunk), 1, 0) for x in (tokens, offsets)]

        logits = jnp.zeros((batch, model.vocab_size), jnp.float32)
        logits, cache = jax.lax.scan(
            lambda before, chunk: (read(before[1], *chunk), None), (logits, cache), chunks
        )[0]
    key, now = jax.random.split(key)
    token = sample(logits, now, sampling).astype(jnp.int32)
    return DecodingState(cache, token, offsets[:, -1] + 1, token == eos_id, key)


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
