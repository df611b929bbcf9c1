"""Speculative decoding (Leviathan et al., 2022, arXiv:2211.17192): a draft proposes γ tokens, and
the target reads them and the newest token in one call.

Greedy output is that of plain decoding, and sampled output has its law, see `acceptance`. Both hold
for the numbers that the target computes: a call with several tokens rounds differently from calls
with one each, so in float32 or bfloat16 a near tie between two tokens may fall the other way.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import UserError
from jaxformer.generate.acceptance import accept
from jaxformer.generate.decode import Decoder, Stats, read_in_chunks
from jaxformer.generate.draft_length import DRAFT_LENGTHS, MOST_DRAFTED, DraftLength
from jaxformer.generate.drafts import Draft, Turn, Verified, Weights
from jaxformer.generate.reading import read_at_once, take_back
from jaxformer.generate.sampling import Sampling, sample
from jaxformer.generate.ways_back import choose_way
from jaxformer.model.language_model import LanguageModel
from jaxformer.ops.attention import appended
from jaxformer.parallel.rules import whole

# Verifications between two checks by the host.
ROUNDS_AT_ONCE = 8
# How many tokens the plain decoding is measured on that a speculative one is compared with.
TOKENS_COMPARED = 65


class SpeculationState(NamedTuple):
    """What is carried from one verification to the next, on the device."""

    cache: Any  # the target's
    draft: Any  # the draft's state
    token: jax.Array  # [batch], the newest, not yet in the caches
    position: jax.Array  # [batch], its place
    left: jax.Array  # [batch], how many tokens are still to come; 0 after end-of-text
    key: jax.Array


class Round(NamedTuple):
    """What verifications made of each row."""

    tokens: jax.Array  # [batch, most], the new ones, end-of-text behind them
    made: jax.Array  # [batch], how many are new
    verifications: jax.Array  # [batch]
    accepted: jax.Array  # [batch], drafted tokens that stayed
    whole: jax.Array  # [batch], verifications in which all of them stayed


class Counts(NamedTuple):
    """The numbers of a `Round` over all rows."""

    made: int
    verifications: int
    accepted: int
    whole: int


@dataclass
class SpeculationStats(Stats):
    """Counts of one call of speculative decoding, over all rows."""

    draft: str = ""
    taken_back: list[str] = field(default_factory=list)  # in which ways
    lengths: list[int] = field(default_factory=list)  # γ of every dispatch
    proposed: int = 0
    accepted: int = 0
    verifications: int = 0

    def add(self, counts: Counts, drafted: int, taken_back: str) -> None:
        """Count a dispatch in which every verification had `drafted` tokens."""
        if taken_back not in self.taken_back:
            self.taken_back.append(taken_back)
        self.lengths.append(drafted)
        self.proposed += drafted * counts.verifications
        self.accepted += counts.accepted
        self.verifications += counts.verifications

    def __str__(self) -> str:
        share = self.accepted / max(self.proposed, 1)
        tokens = 1 + self.accepted / max(self.verifications, 1)
        most, least = max(self.lengths, default=0), min(self.lengths, default=0)
        several = f"{least}" if most == least else f"{least} to {most}"
        ways = "".join(f"; {way}" for way in self.taken_back)
        return (
            f"{super().__str__()}\n"
            f"draft {self.draft}, {several} tokens at once: {self.proposed} proposed, {share:.0%} "
            f"accepted, {tokens:.2f} tokens per verification{ways}"
        )


@dataclass(frozen=True)
class SpeculativeDecoder(Decoder):
    """Decodes as `Decoder` does, with the help of a draft.

    draft_weights: the draft's own parameters, laid out for decoding.
    draft_tokens: γ; None chooses it by what is accepted, see `DraftLength`.
    """

    draft: Draft = field(default_factory=Draft)
    draft_name: str = ""
    draft_weights: Any = None
    draft_tokens: int | None = None

    @classmethod
    def from_decoder(
        cls,
        decoder: Decoder,
        draft: Draft,
        name: str,
        weights: Any = None,
        draft_tokens: int | None = None,
    ) -> "SpeculativeDecoder":
        """With a decoder's parameters, which are not copied. A draft that can propose only so many
        tokens proposes them all, unless `draft_tokens` says fewer.

        Raises:
            UserError: `draft_tokens` is out of range.
        """
        most = min(draft.most or MOST_DRAFTED, MOST_DRAFTED)
        if draft_tokens is not None and not 1 <= draft_tokens <= most:
            reason = "" if draft.most is None else f", as many as the draft {name} predicts"
            raise UserError(f"draft_tokens is {draft_tokens}; allowed: 1 to {most}{reason}")
        if draft.most is not None and draft_tokens is None:
            draft_tokens = most
        taken_back = most_taken_back(draft_tokens)
        model, draft = decoder.model.clone(taken_back=taken_back), draft.taking_back(taken_back)
        return cls(
            model, decoder.params, decoder.eos_id, decoder.mesh, {}, draft, name, weights,
            draft_tokens,
        )  # fmt: skip

    @property
    def weights(self) -> Weights:
        return Weights(self.params, self.draft_weights)

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
        measured = SpeculationStats() if stats is None else stats
        task = self._task(prompts, max_new_tokens, padded_length)
        wanted = np.full(len(prompts), max_new_tokens - 1, np.int32)
        static = (self.model, self.draft, task.chunk, task.max_length, sampling, self.eos_id)
        arguments = (self.weights, *task.rows, self._put(wanted), jax.random.key(seed))
        prefill = partial(_prefill, *static)
        state = self._run("prefill", prefill, arguments, measured, task.name)
        measured.prompt_tokens += sum(len(prompt) for prompt in prompts)
        measured.new_tokens += len(prompts)
        yield whole(state.token)[:, None]

        length = DraftLength(self.draft.cost(self.weights), self.draft_tokens)
        rows, ways = _Rows(len(prompts), self.eos_id), dict[int, str]()
        left = whole(state.left)
        while left.any():
            decode = partial(_decode, self.model, self.draft, length.now, sampling, self.eos_id)
            state, made = self._run("decode", decode, (self.weights, state), measured, task.name)
            left, made = whole(state.left), jax.tree.map(whole, made)
            counts = Counts(*(int(count.sum()) for count in made[1:]))
            measured.new_tokens += counts.made
            if isinstance(measured, SpeculationStats):
                if length.now not in ways:
                    ways[length.now] = str(choose_way(self.model, len(prompts), length.now + 1))
                measured.add(counts, length.now, ways[length.now])
            length.learn(counts.verifications, counts.accepted, counts.whole)
            piece = rows.complete(made, left > 0)
            if piece.shape[1]:
                yield piece

    @property
    def _most_unwanted(self) -> int:
        return self.model.taken_back

    def new_stats(self) -> Stats:
        return SpeculationStats(draft=self.draft_name)

    def report(
        self,
        stats: Stats,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        seed: int = 0,
    ) -> str:
        plain = Decoder(self.model.clone(taken_back=0), self.params, self.eos_id, self.mesh)
        measured = Stats()
        tokens = min(max_new_tokens, TOKENS_COMPARED)
        for _ in plain.decode(
            prompts, max_new_tokens=tokens, sampling=sampling, seed=seed, stats=measured
        ):
            pass
        if measured.decode_seconds == 0 or stats.decode_seconds == 0:
            return str(stats)
        ratio = stats.decoded_per_second / measured.decoded_per_second
        return (
            f"{stats}\n{ratio:.2f} times as fast as plain decoding, which decoded "
            f"{measured.new_tokens} tokens at {measured.decoded_per_second:,.0f}/s"
        )


def most_taken_back(draft_tokens: int | None) -> int:
    """How many tokens caches must be able to take back: all that are drafted, and one more."""
    return 1 + (max(DRAFT_LENGTHS) if draft_tokens is None else draft_tokens)


class _Rows:
    """Rows get different numbers of tokens; collects them until all rows have one."""

    def __init__(self, batch: int, eos_id: int) -> None:
        self._waiting = [np.zeros(0, np.int32)] * batch
        self._eos_id = eos_id

    def complete(self, made: Round, goes_on: np.ndarray) -> np.ndarray:
        """The next tokens [batch, n] that every row has; rows that have ended are filled up with
        end-of-text, and if none goes on, all that is there is complete."""
        self._waiting = [
            np.concatenate([before, tokens[:count]])
            for before, tokens, count in zip(self._waiting, made.tokens, made.made, strict=True)
        ]
        sizes = np.array([len(row) for row in self._waiting])
        size = sizes[goes_on].min() if goes_on.any() else sizes.max()
        piece = np.full((len(sizes), size), self._eos_id, np.int32)
        for place, row in enumerate(self._waiting):
            piece[place, : len(row[:size])] = row[:size]
            self._waiting[place] = row[size:]
        return piece


def _prefill(
    model: LanguageModel,
    draft: Draft,
    chunk: int,
    max_length: int,
    sampling: Sampling,
    eos_id: int,
    weights: Weights,
    tokens: jax.Array,
    starts: jax.Array,
    left: jax.Array,
    key: jax.Array,
) -> SpeculationState:
    """Read prompts [batch, length] that begin at `starts` [batch], and draw the next token of each;
    `left` [batch] are to come after that."""
    batch, length = tokens.shape
    params = {"params": weights.target}

    def read(states: tuple, tokens: jax.Array, offsets: jax.Array) -> tuple[jax.Array, tuple]:
        cache, drafted = states
        segment_ids = (offsets >= 0).astype(jnp.int32)
        positions = jnp.maximum(offsets, 0)
        x, cache, _ = model.apply(
            params, tokens, positions, segment_ids, None, cache, method="trunk"
        )
        return x[:, -1], (cache, draft.read(weights, drafted, tokens, offsets, x))

    states = (model.init_cache(batch, max_length), draft.start(weights, batch, max_length))
    last, (cache, drafted) = read_in_chunks(read, states, chunk, tokens, starts)
    key, now = jax.random.split(key)
    token = sample(model.apply(params, last, method="logits"), now, sampling).astype(jnp.int32)
    left = jnp.where(token == eos_id, 0, left)
    return SpeculationState(cache, drafted, token, length - starts, left, key)


def _decode(
    model: LanguageModel,
    draft: Draft,
    count: int,
    sampling: Sampling,
    eos_id: int,
    weights: Weights,
    state: SpeculationState,
) -> tuple[SpeculationState, Round]:
    """Up to ROUNDS_AT_ONCE verifications of `count` drafted tokens each."""
    batch = len(state.token)
    nothing = jnp.zeros(batch, jnp.int32)
    most = ROUNDS_AT_ONCE * (count + 1)
    so_far = Round(jnp.full((batch, most), eos_id, jnp.int32), *[nothing] * 4)

    def goes_on(carry: tuple) -> jax.Array:
        state, _, rounds = carry
        return (rounds < ROUNDS_AT_ONCE) & jnp.any(state.left > 0)

    def one(carry: tuple) -> tuple:
        state, so_far, rounds = carry
        state, new = _verify(model, draft, count, sampling, eos_id, weights, state)
        tokens = appended(so_far.tokens, new.tokens, so_far.made)
        counts = (a + b for a, b in zip(so_far[1:], new[1:], strict=True))
        return state, Round(tokens, *counts), rounds + 1

    return jax.lax.while_loop(goes_on, one, (state, so_far, jnp.int32(0)))[:2]


def _verify(
    model: LanguageModel,
    draft: Draft,
    count: int,
    sampling: Sampling,
    eos_id: int,
    weights: Weights,
    state: SpeculationState,
) -> tuple[SpeculationState, Round]:
    """Propose `count` tokens, verify them, and keep those that stay."""
    key, of_draft, of_target = jax.random.split(state.key, 3)
    turn = Turn(state.token, state.position, state.cache, of_draft)
    proposal = draft.propose(weights, state.draft, turn, count, sampling)
    tokens = jnp.concatenate([state.token[:, None], proposal.tokens], axis=1)
    hidden, kept = read_at_once(model, weights.target, proposal.cache, tokens, state.position)
    logits = model.apply({"params": weights.target}, hidden, method="logits")
    accepted, following = accept(
        logits, proposal.tokens, proposal.probabilities, of_target, sampling
    )

    is_running = state.left > 0
    counts = jnp.where(is_running, accepted + 1, 0)  # of `tokens` stay in the caches
    cache = take_back(model, weights.target, kept, count + 1 - counts)
    verified = Verified(tokens, state.position, hidden, counts)
    drafted = draft.settle(weights, proposal.state, verified)

    places = jnp.arange(count + 1, dtype=jnp.int32)
    new = jnp.pad(proposal.tokens, [(0, 0), (0, 1)])
    new = jnp.where(places == accepted[:, None], following[:, None], new)
    is_end = new == eos_id
    to_end = 1 + jnp.argmax(is_end, axis=1).astype(jnp.int32)
    to_end = jnp.where(jnp.any(is_end, axis=1), to_end, count + 1)
    made = jnp.minimum(jnp.minimum(counts, to_end), state.left)
    has_ended = (to_end <= made) & jnp.any(is_end, axis=1)
    left = jnp.where(has_ended, 0, state.left - made)
    new = jnp.where(places < made[:, None], new, eos_id)
    state = SpeculationState(
        cache,
        drafted,
        jnp.where(is_running, following, state.token),
        state.position + counts,
        left,
        key,
    )
    ran = is_running.astype(jnp.int32)
    stayed = jnp.where(is_running, accepted, 0)
    return state, Round(new, made, ran, stayed, ran * (accepted == count))
