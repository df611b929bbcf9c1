"""What a model with further predictions says of the tokens after the next one: losses of whole
rows, and drafts from caches, for speculative decoding.

Functions of a bound model: `model.apply({"params": params}, …, method=losses_ahead)`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxformer.model.depth.stack import KEYS
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.lora import adapted
from jaxformer.model.mixers import Cache
from jaxformer.model.rows import LayerAux, RowInfo
from jaxformer.ops.cross_entropy import LossSums
from jaxformer.parallel.context import over_context

# (k, logits [batch, vocab] of token N + k) → the drafted token [batch]
Choose = Callable[[int, jax.Array], jax.Array]


def losses_ahead(
    model: LanguageModel,
    inputs: jax.Array,
    targets: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    loss_mask: jax.Array,
    z_loss: float = 0.0,
) -> tuple[tuple[LossSums, ...], LayerAux]:
    """`LanguageModel.loss`, and with it the sums for the further predictions k = 1, 2, …, without
    z-loss.

    A target is in sum k if it is in the loss, and if the token before it, which is k places ahead,
    is in the row and of the same document.
    """
    module = model.clone(parent=None)

    def hidden(params: dict, keys: dict[str, jax.Array], *rows: jax.Array) -> tuple:
        return module.apply({"params": params}, *rows, method=_hidden_ahead, rngs=keys)

    # Whole rows are shifted here, before they may be cut over `context`.
    places = range(1, model.further.config.count + 1)
    near = [_reaches(segment_ids, k) for k in places]
    segments = [jnp.where(there, segment_ids, 0) for there in near]
    ahead = [(_shifted(inputs, k), own) for k, own in zip(places, segments, strict=True)]
    keys = {name: model.make_rng(name) for name in KEYS if model.has_rng(name)}
    params = model.variables["params"]
    (x, further), aux = over_context(hidden)(params, keys, inputs, positions, segment_ids, ahead)
    head = model.head()
    sums = [model.outputs.loss(head, x, targets, loss_mask, z_loss)]
    for k, there, y in zip(places, near, further, strict=True):
        mask = jnp.where(there, _shifted(loss_mask, k), jnp.zeros((), loss_mask.dtype))
        sums.append(model.outputs.loss(head, y, _shifted(targets, k), mask, 0.0))
    return tuple(sums), aux


def _hidden_ahead(
    model: LanguageModel,
    inputs: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    ahead: list[tuple[jax.Array, jax.Array]],
) -> tuple[tuple[jax.Array, list[jax.Array]], LayerAux]:
    x, _, aux = model.trunk(inputs, positions, segment_ids)
    every = [(tokens, RowInfo(positions, segments)) for tokens, segments in ahead]
    further, loss = model.predict_further(x, every)
    losses = [each for each in (aux.loss, loss) if each is not None]
    aux = aux._replace(loss=sum(losses[1:], losses[0]) if losses else None)
    return (model.normed(x), further), aux


def _shifted(x: jax.Array, k: int) -> jax.Array:
    """x [batch, length] → y with y_t = x_{t+k}; 0 or False where the row has ended."""
    return jnp.pad(x[:, k:], ((0, 0), (0, min(k, x.shape[1]))))


def _reaches(segment_ids: jax.Array, k: int) -> jax.Array:
    """[batch, length]: whether the token k places ahead is in the row, and of the same document."""
    return (_shifted(segment_ids, k) == segment_ids) & (segment_ids != 0)


class Read(NamedTuple):
    """Tokens that the model has read, each array [batch, length]."""

    hidden: jax.Array  # [batch, length, d_model], the last layer's output, without the final norm
    tokens: jax.Array
    positions: jax.Array
    segment_ids: jax.Array


class FurtherCache(NamedTuple):
    """The predictions' caches of what the model has read.

    Prediction k of position t reads token t + k where predictions are chained. With R the newest
    token that the model has read, what all of them make of the positions up to R − count is
    certain, and in `layers`. The count positions up to R are in `tail`: every draft reads them
    again, with drafted tokens where none is known yet. Predictions beside each other know all of
    positions up to R, and the tail is R alone, for which the draft is wanted.
    """

    layers: tuple[Cache, ...]
    tail: Read


class Drafts(NamedTuple):
    """The `count` tokens after the newest one, which the model has not read yet."""

    tokens: jax.Array  # [batch, count]
    logits: jax.Array  # [batch, count, vocab], float32


def init_further_cache(
    model: LanguageModel, batch: int, max_length: int, dtype: DTypeLike | None = None
) -> FurtherCache:
    """The cache of the predictions of a model, bound or not, before the first token of sequences of
    up to `max_length` tokens; the tail is padding, which is then read as such."""
    further, dtype = model.further_predictions(parent=None), dtype or model.dtype
    lag = further.config.lag
    none = jnp.zeros((batch, lag), jnp.int32)
    tail = Read(jnp.zeros((batch, lag, further.dims.d_model), dtype), none, none, none)
    return FurtherCache(further.init_cache(batch, max_length + lag, dtype), tail)


def advance_further(
    model: LanguageModel, cache: FurtherCache, new: Read, counts: jax.Array | None = None
) -> FurtherCache:
    """Take in what the model has read: all of `new`, or the first `counts` [batch] tokens of each
    row, where `new` has at least 2 and at most the model's `taken_back` tokens. The rest of a row
    was rejected, and leaves nothing behind."""
    further = model.further
    lag, length = further.config.lag, new.tokens.shape[1]
    window = jax.tree.map(lambda old, new: jnp.concatenate([old, new], 1), cache.tail, new)
    x, longer, mixer = model.further_input(window.hidden[:, :length]), [], further.mixer()
    rows = RowInfo(window.positions[:, :length], window.segment_ids[:, :length])
    rejected = jnp.zeros(len(x), jnp.int32) if counts is None else length - counts
    for k, layer in enumerate(cache.layers, start=1):
        embeddings = None
        if further.config.chained:
            embeddings = model.embed(window.tokens[:, k : k + length], rows.positions + k)
        with adapted(model.lora):
            y, layer, _ = further(k, x, embeddings, rows, layer)
        if mixer is not None and 1 < length <= further.dims.taken_back:
            layer = mixer.take_back(layer, rejected)
        longer.append(layer)
        x = y if further.config.chained else x
    kept = (length - rejected)[:, None] + jnp.arange(lag)  # [batch, lag]
    batch = jnp.arange(len(kept))[:, None]
    return FurtherCache(tuple(longer), jax.tree.map(lambda part: part[batch, kept], window))


def draft_further(
    model: LanguageModel, cache: FurtherCache, token: jax.Array, choose: Choose
) -> tuple[Drafts, FurtherCache]:
    """Draft the tokens after `token` [batch], which follows those that the model has read.

    The cache that is returned holds what the given one does: what the positions of the tail left in
    `layers` is provisional, and is taken back.
    """
    further = model.further
    tail, mixer, count = cache.tail, further.mixer(), further.config.count
    lag = further.config.lag
    # What follows each position of the tail, and then the drafts.
    following = jnp.concatenate([tail.tokens[:, 1:], token[:, None]], 1)
    rows = RowInfo(tail.positions, tail.segment_ids)
    x, layers, scores = model.further_input(tail.hidden), [], []
    for k, before in enumerate(cache.layers, start=1):
        embeddings = None
        if further.config.chained:
            embeddings = model.embed(following[:, k - 1 :], tail.positions + k)
        with adapted(model.lora):
            y, longer, _ = further(k, x, embeddings, rows, before)
        if mixer is not None and mixer.rewinds:
            layers.append(mixer.rewind(longer, jnp.full(len(token), lag)))
        else:
            layers.append(before)
        read = model.further_normed(y[:, -1])
        scores.append(model.outputs.logits(model.head(), read, model.num_tokens))
        drafted = choose(k, scores[-1]).astype(following.dtype)
        following = jnp.concatenate([following, drafted[:, None]], 1)
        x = y if further.config.chained else x
    drafts = Drafts(following[:, -count:], jnp.stack(scores, 1))
    return drafts, cache._replace(layers=tuple(layers))
