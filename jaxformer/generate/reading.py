"""Reading a few tokens into a model's caches in such a way that they can be taken back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.generate.acceptance import law
from jaxformer.generate.sampling import Sampling, sample
from jaxformer.generate.ways_back import Way, choose_way
from jaxformer.model.depth.stack import choose_rows
from jaxformer.model.language_model import LanguageModel

PyTree = Any


class Reread(NamedTuple):
    """What a replay needs."""

    longer: PyTree  # the caches after the tokens
    before: PyTree  # the caches before them
    tokens: jax.Array  # [1, n]
    position: jax.Array  # [1]


def read_at_once(
    model: LanguageModel, params: PyTree, cache: PyTree, tokens: jax.Array, position: jax.Array
) -> tuple[jax.Array, PyTree]:
    """Read tokens [batch, n] whose first are at `position` [batch], n at most model.taken_back, in
    the way that `choose_way` names.

    Returns:
        (their hidden states [batch, n, d_model], what `take_back` needs).
    """
    match choose_way(model, *tokens.shape).way:
        case Way.LENGTH | Way.STATES:
            return read(model, params, cache, tokens, position)
        case Way.REPLAY:
            without = model.clone(keeps_states=False)
            hidden, longer = read(without, params, cache, tokens, position)
            return hidden, Reread(longer, cache, tokens, position)

    def one(cache: PyTree, token: tuple[jax.Array, jax.Array]) -> tuple[PyTree, tuple]:
        tokens, place = token
        hidden, longer = read(model, params, cache, tokens[:, None], position + place)
        return longer, (hidden[:, 0], cache)

    places = jnp.arange(tokens.shape[1], dtype=position.dtype)
    after, (hidden, before) = jax.lax.scan(one, cache, (tokens.T, places))
    return jnp.moveaxis(hidden, 0, 1), (before, after)


def take_back(model: LanguageModel, params: PyTree, kept: PyTree, counts: jax.Array) -> PyTree:
    """The cache without the last `counts` [batch] tokens of what `read_at_once` read."""
    depth = model.depth(parent=None)
    if isinstance(kept, Reread):
        return _replay(model, params, kept, counts)
    if depth.takes_back:
        return depth.take_back(kept, counts)
    before, cache = kept
    length = len(jax.tree.leaves(before)[0])
    for count in range(1, length + 1):
        earlier = jax.tree.map(lambda array, place=length - count: array[place], before)
        cache = choose_rows(counts == count, earlier, cache)
    return cache


def _replay(model: LanguageModel, params: PyTree, kept: Reread, counts: jax.Array) -> PyTree:
    """The tokens that stay, read again from the caches before; nothing is read if all stay."""
    longer, before, tokens, position = kept
    length = tokens.shape[1]
    without, depth = model.clone(keeps_states=False), model.depth(parent=None)

    def reading(count: int) -> Callable[[PyTree, PyTree], PyTree]:
        def again(longer: PyTree, before: PyTree) -> PyTree:
            if count == length:
                return longer
            undone = depth.undo(longer, before, jnp.full_like(position, length))
            if count == 0:
                return undone
            return read(without, params, undone, tokens[:, :count], position)[1]

        return again

    branches = [reading(count) for count in range(length + 1)]
    return jax.lax.switch(length - counts[0], branches, longer, before)


def read(
    model: LanguageModel, params: PyTree, cache: PyTree, tokens: jax.Array, position: jax.Array
) -> tuple[jax.Array, PyTree]:
    """(hidden states [batch, n, d_model], the longer cache) of tokens [batch, n] from `position`
    [batch] on."""
    positions = position[:, None] + jnp.arange(tokens.shape[1], dtype=position.dtype)
    hidden, cache, _ = model.apply(
        {"params": params}, tokens, positions, jnp.ones_like(tokens), None, cache, method="trunk"
    )
    return hidden, cache


def draw(
    model: LanguageModel,
    params: PyTree,
    cache: PyTree,
    token: jax.Array,
    position: jax.Array,
    key: jax.Array,
    count: int,
    sampling: Sampling,
    vocab_size: int,
) -> tuple[jax.Array, jax.Array | None, PyTree]:
    """Decode `count` tokens after token [batch] at `position` [batch], step by step.

    Returns:
        (tokens [batch, count], their laws [batch, count, vocab_size], or None when decoding is
        greedy, the longer cache).
    """

    def one(carry: tuple, key: jax.Array) -> tuple[tuple, tuple]:
        cache, token, position = carry
        hidden, cache = read(model, params, cache, token[:, None], position)
        logits = model.apply({"params": params}, hidden[:, 0], method="logits")[:, :vocab_size]
        token = sample(logits, key, sampling).astype(jnp.int32)
        probabilities = None if sampling.temperature == 0 else law(logits, sampling)
        return (cache, token, position + 1), (token, probabilities)

    (cache, _, _), (tokens, probabilities) = jax.lax.scan(
        one, (cache, token, position), jax.random.split(key, count)
    )
    if probabilities is not None:
        probabilities = jnp.moveaxis(probabilities, 0, 1)
        missing = vocab_size - probabilities.shape[-1]  # padding of the target's vocabulary
        probabilities = jnp.pad(probabilities, [(0, 0), (0, 0), (0, missing)])
    return tokens.T, probabilities, cache
