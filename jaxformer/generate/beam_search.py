"""Beam search: the likeliest target of a source, among those that a few hypotheses lead to."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.batch import Pair, Source
from jaxformer.errors import UserError
from jaxformer.model.depth.stack import take_rows
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.mixers import Cache
from jaxformer.model.rows import Memory

PyTree = Any


@dataclass(frozen=True)
class BeamSearch:
    """`beams` hypotheses are kept per source; one is greedy decoding. A target of n tokens, its end
    among them, has the score log p / ((5 + n) / 6)^length_penalty (Wu et al., 2016,
    arXiv:1609.08144, equation 14): more than 0 favours longer ones.

    Raises:
        UserError: a value is not allowed.
    """

    beams: int = 4
    length_penalty: float = 0.6
    max_new_tokens: int | None = None  # as many as rows of training have if None

    def __post_init__(self) -> None:
        for name in ("beams", "max_new_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} is {value}; allowed: 1 or more")
        if self.length_penalty < 0:
            raise UserError(f"length_penalty is {self.length_penalty:g}; allowed: 0 or more")

    def penalty(self, length: jax.Array | int) -> jax.Array:
        """What log p of a target of `length` tokens is divided by."""
        return ((5.0 + length) / 6.0) ** self.length_penalty


class Written(NamedTuple):
    """The best target of every source: its tokens [batch, max_new_tokens], filled up with
    end-of-text, and its score [batch]."""

    tokens: jax.Array
    scores: jax.Array


class _Hypotheses(NamedTuple):
    """Some per source, the best first."""

    tokens: jax.Array  # [batch, beams, max_new_tokens], end-of-text where there is none yet
    scores: jax.Array  # [batch, beams]


class _State(NamedTuple):
    length: jax.Array  # [], of each hypothesis
    alive: _Hypotheses  # scored by log p
    finished: _Hypotheses  # scored by log p / penalty, −∞ where there is none
    cache: Cache  # of rows [batch · beams]


def write(
    model: LanguageModel,
    search: BeamSearch,
    start: tuple[int, ...],
    eos_id: int,
    params: PyTree,
    source: Source,
) -> Written:
    """The targets of sources [batch, ...], which follow the ids `start`, to be jitted.

    Of the 2 · beams likeliest continuations, those that end are finished if they are among the
    first `beams`, and the likeliest others are followed. A search ends when no hypothesis can
    become better than the finished ones are, or at `max_new_tokens`; where none has ended by then,
    the likeliest is taken as it is.
    """
    beams, most = search.beams, search.max_new_tokens
    if most is None:
        raise ValueError("max_new_tokens is None; give a number")
    memory, _ = model.apply({"params": params}, *source, method="encode")
    batch = len(memory.segment_ids)
    of_beams = Memory(*(jnp.repeat(x, beams, axis=0) for x in memory))

    def extended(tokens: jax.Array | Pair, places: jax.Array, cache: Cache) -> tuple:
        """(log p of the next token [batch, beams, vocab], the longer cache)"""
        positions = jnp.broadcast_to(places, (batch * beams, len(places)))
        rows = (positions, jnp.ones_like(positions))
        logits, cache = model.apply({"params": params}, tokens, *rows, cache, method="step")
        log_probs = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
        return log_probs.reshape(batch, beams, -1), cache

    def advanced(state: _State, log_probs: jax.Array, cache: Cache) -> _State:
        vocab, length = log_probs.shape[-1], state.length + 1
        every = (state.alive.scores[..., None] + log_probs).reshape(batch, -1)
        scores, index = jax.lax.top_k(every, min(2 * beams, every.shape[1]))
        parents, ids = index // vocab, (index % vocab).astype(jnp.int32)
        histories = jnp.take_along_axis(state.alive.tokens, parents[..., None], axis=1)
        tokens = histories.at[:, :, state.length].set(ids)
        ends = ids == eos_id
        ended = jnp.where(ends, scores / search.penalty(length), -jnp.inf)[:, :beams]
        finished = _best(state.finished, _Hypotheses(tokens[:, :beams], ended))
        scores = jnp.where(ends, -jnp.inf, scores)
        scores, kept = jax.lax.top_k(scores, beams)
        alive = _Hypotheses(jnp.take_along_axis(tokens, kept[..., None], axis=1), scores)
        from_parents = jnp.take_along_axis(parents, kept, axis=1)
        rows = from_parents + beams * jnp.arange(batch)[:, None]
        return _State(length, alive, finished, take_rows(rows.reshape(-1), cache))

    def goes_on(state: _State) -> jax.Array:
        # The score that the likeliest hypothesis would have if all its further tokens were certain.
        hope = state.alive.scores[:, 0] / search.penalty(most)
        return (state.length < most) & jnp.any(hope > state.finished.scores[:, -1])

    def turn(state: _State) -> _State:
        newest = state.alive.tokens[:, :, state.length - 1].reshape(-1, 1)
        place = (len(start) - 1 + state.length)[None]
        return advanced(state, *extended(newest, place, state.cache))

    begun = jnp.broadcast_to(jnp.asarray(start, jnp.int32), (batch * beams, len(start)))
    empty = model.init_cache(batch * beams, len(start) - 1 + most)
    log_probs, cache = extended(Pair(begun, of_beams), jnp.arange(len(start)), empty)
    blank = jnp.full((batch, beams, most), eos_id, jnp.int32)
    nothing = _Hypotheses(blank, jnp.full((batch, beams), -jnp.inf, log_probs.dtype))
    # All hypotheses are the same at first: one of them is followed.
    alive = _Hypotheses(blank, nothing.scores.at[:, 0].set(0.0))
    none = jnp.zeros((), jnp.int32)
    state = advanced(_State(none, alive, nothing, empty), log_probs, cache)
    state = jax.lax.while_loop(goes_on, turn, state)
    unfinished = _Hypotheses(state.alive.tokens, state.alive.scores / search.penalty(state.length))
    has_ended = jnp.isfinite(state.finished.scores[:, 0])
    return Written(
        jnp.where(has_ended[:, None], state.finished.tokens[:, 0], unfinished.tokens[:, 0]),
        jnp.where(has_ended, state.finished.scores[:, 0], unfinished.scores[:, 0]),
    )


def _best(a: _Hypotheses, b: _Hypotheses) -> _Hypotheses:
    """The best of both, as many as `a` has."""
    tokens, scores = (jnp.concatenate(pair, axis=1) for pair in zip(a, b, strict=True))
    scores, kept = jax.lax.top_k(scores, a.scores.shape[1])
    return _Hypotheses(jnp.take_along_axis(tokens, kept[..., None], axis=1), scores)
