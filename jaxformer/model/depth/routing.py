"""What routers of tokens share: scores, a choice, and layers that only the chosen tokens pass."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.model.depth.stack import choose_rows
from jaxformer.model.dims import Dims
from jaxformer.model.mixers import Cache
from jaxformer.model.norms import rms_normalize
from jaxformer.model.projections import Projection
from jaxformer.model.residuals import Stream
from jaxformer.model.rows import LayerAux, RowInfo
from jaxformer.ops.selection import best_of, put, select, take

Layers = Callable[[Stream, RowInfo], tuple[Stream, LayerAux]]
CachedLayers = Callable[[Stream, RowInfo, Cache], tuple[Stream, Cache]]


class Scores(nn.Module):
    """x w + b: a score of every token, or one for each of `count`, in float32 at least."""

    dims: Dims
    count: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [batch, length, width] → [batch, length] or [batch, length, count]."""
        several: tuple[int, ...] = () if self.count is None else (self.count,)
        axes = ("vector",) if self.count is None else ("d_model", "gates")
        width = x.shape[-1]
        named, start = nn.with_logical_partitioning, self.dims.init.matrix(width)
        shape = (width, *several)
        weight = self.param("weight", named(start, axes), shape, jnp.float32)
        zeros = named(nn.initializers.zeros, axes[1:])
        bias = self.param("bias", zeros, several, jnp.float32)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return x.astype(wide) @ weight.astype(wide) + bias


class Predictor(nn.Module):
    """w · gelu(W x / rms(x) + c) + b with a hidden width of `predictor_width`; no gradient reaches
    x."""

    dims: Dims

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [batch, length, d_model] → [batch, length]."""
        width, given = self.dims.d_model, jax.lax.stop_gradient(rms_normalize(x, 1e-6))
        # What it reads is of size 1 whatever `init` says, so it starts like this.
        start = nn.initializers.normal(width**-0.5)
        size, axes = (predictor_width(width),), ("d_model", "gates")
        hidden = nn.gelu(Projection(size, axes, start, use_bias=True, name="hidden")(given))
        return Scores(self.dims, name="output")(hidden)


def predictor_width(d_model: int) -> int:
    """The hidden width of a `Predictor`: a quarter of d_model."""
    return max(1, d_model // 4)


class Choice(NamedTuple):
    """The tokens that a router sends through layers, and what weighs their updates."""

    gate: jax.Array  # [batch, length], float32
    picked: jax.Array  # [batch, length], bool
    share: float  # at most this share of a row is picked


class Learned(NamedTuple):
    """What is learned from a choice besides the loss of the tokens."""

    loss: jax.Array  # [], weighted
    # [batch, length], bool: whether the predictor, if there is one, would have chosen the same.
    right: jax.Array | None


def router_flops(d_model: int, share: float) -> float:
    """Per token, of a `Router`."""
    predictor = 0.0 if share == 1.0 else 2.0 * (d_model + 1) * predictor_width(d_model)
    return 2.0 * d_model + predictor


class Router(nn.Module):
    """Picks tokens for some layers: the router's score r = w · x + b says which, and its sigmoid
    weighs their updates.

    In training, the ⌈share · length⌉ candidates of a row with the highest scores are picked, which
    depends on later tokens. Everywhere else, a predictor p(x) picks from the token alone: those
    with p(x) > 0, however many they are. It learns what was picked by

        predictor_weight · Σ BCE(σ(p(x)), picked)

    over the candidates, whose gradient reaches the predictor alone; see `Predictor`, "akin to a
    second router" in section 3.5 of arXiv:2404.02258. Training is where there is a random key
    `depth`.

    A share of 1 picks all candidates and has no predictor. The bias b does not change which tokens
    are picked, only how much of the update they get.
    """

    dims: Dims
    share: float
    predictor_weight: float

    @nn.compact
    def __call__(self, x: jax.Array, candidates: jax.Array) -> tuple[Choice, Learned | None]:
        """x [batch, length, d_model], candidates [batch, length] → (the choice, and what the
        predictor learns, if it does)."""
        scores = Scores(self.dims, name="router")(x)
        if self.share == 1.0:
            return Choice(jax.nn.sigmoid(scores), candidates, 1.0), None
        predicted = Predictor(self.dims, name="predictor")(x)
        gate, guessed = jax.nn.sigmoid(scores), candidates & (predicted > 0)
        if not self.has_rng("depth"):
            return Choice(gate, guessed, 1.0), None
        picked = best_of(scores, candidates, self.share)
        losses = jax.nn.softplus(predicted) - picked * predicted
        loss = self.predictor_weight * jnp.sum(jnp.where(candidates, losses, 0.0))
        return Choice(gate, picked, self.share), Learned(loss, picked == guessed)


def pass_through(
    layers: Layers, stream: Stream, rows: RowInfo, choice: Choice
) -> tuple[Stream, LayerAux]:
    """x + gate · (layers(x) − x) for the picked tokens, x for the others.

    The layers see the picked tokens of each row alone, as a shorter row: in their order, with their
    positions and documents, filled up with padding.
    """
    selection = select(choice.picked, choice.share)
    given, gate = take(selection, (stream, choice.gate))
    made, aux = layers(given, rows.each(partial(take, selection)))
    update = jax.tree.map(lambda new, old: _weigh(gate, new - old), made, given)
    return jax.tree.map(jnp.add, stream, put(selection, update)), aux


def continue_through(
    layers: CachedLayers, stream: Stream, rows: RowInfo, choice: Choice, cache: Cache
) -> tuple[Stream, Cache]:
    """`pass_through` of the tokens that follow those in `cache`, one after another. A token that is
    not picked leaves the cache as it was: attention does not see it, and the state of a recurrence
    passes it unchanged.

    Raises:
        ValueError: `rows` have an order.
    """
    if rows.order is not None:
        raise ValueError(
            "routed layers continue a cache by one token after another, so rows.order cannot be "
            "given with a cache; leave it out, or use model.depth fixed"
        )

    def step(cache: Cache, token: tuple) -> tuple[Cache, Stream]:
        stream, own, gate, picked = jax.tree.map(lambda x: x[:, None], token)
        made, longer = layers(stream, rows.with_rest(own), cache)
        gate = jnp.where(picked, gate, 0.0)
        stream = jax.tree.map(lambda new, old: old + _weigh(gate, new - old), made, stream)
        return choose_rows(picked[:, 0], longer, cache), jax.tree.map(lambda x: x[:, 0], stream)

    tokens = (stream, rows.of_tokens(), choice.gate, choice.picked)
    cache, stream = jax.lax.scan(step, cache, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), stream), cache


def _weigh(gate: jax.Array, x: jax.Array) -> jax.Array:
    """gate [batch, length] · x [batch, length, ...]"""
    return gate.astype(x.dtype).reshape(*gate.shape, *[1] * (x.ndim - 2)) * x
