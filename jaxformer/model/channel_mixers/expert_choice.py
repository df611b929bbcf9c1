"""Experts that choose tokens: all experts are equally busy, and tokens get more or fewer of them
(Zhou et al., 2022, arXiv:2202.09368)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.model.channel_mixers.router import HIGHEST, Router, Routing, entropy, shares_of
from jaxformer.model.rows import RowInfo
from jaxformer.ops import shards
from jaxformer.ops.selection import best_of_whole, room
from jaxformer.parallel.expert import Picks, Tokens, of_own_tokens

MOST = 2  # so many times the mean are the most experts that a token visits by prediction


class ExpertChoice(Router):
    """Every expert takes the ⌈share · length⌉ tokens of a row that it scores best, with gates as in
    `Router`, over the experts that took the token.

    What a token gets so depends on later tokens. Where `options.predictor_weight` is given, experts
    choose in training alone, where there is a random key `depth`. Everywhere else a token visits
    the experts with p(x) > 0, at most 2 · share · num_experts of them, with p = V x + c, which
    learns what the experts chose from

        predictor_weight · Σ mean_e BCE(σ(p_e(x)), taken by e)

    over tokens; its gradient reaches V and c alone. Statistics: `unvisited`, tokens that no expert
    took, and `predicted_experts`, the share of the experts that the predictor was right about.
    """

    share: float

    @nn.compact
    def __call__(self, x: jax.Array, rows: RowInfo) -> Routing:
        options, count = self.options, self.options.num_experts
        _, scores = self.scores(x)
        real = rows.segment_ids != 0
        predicted = None
        if options.predictor_weight is not None:
            predicted = self._predict(jax.lax.stop_gradient(x))
            if not self.has_rng("depth"):
                return self._as_predicted(x, scores, predicted, rows)

        shape = (*real.shape, count)
        best = partial(of_own_tokens, partial(_taken, share=self.share))
        scored = jax.lax.stop_gradient(scores).reshape(shape)
        taken = shards.of_whole(best, scored, real)  # [batch, length, experts]
        flat = taken.reshape(scores.shape)
        gates = self.gates(scores, flat)
        slots = min(real.shape[1], room(self.share, shards.count() * real.shape[1]))
        picks = Picks(
            x.reshape(*real.shape, -1),
            of_own_tokens(partial(_places, slots=slots), taken),
            jnp.moveaxis(gates.reshape(shape), 2, 1),
        )
        stats = self._stats(scores, flat, real.reshape(-1))
        if predicted is None or options.predictor_weight is None:
            return Routing(picks, None, stats)
        losses = jnp.mean(jax.nn.softplus(predicted) - flat * predicted, axis=1)
        right = jnp.mean((predicted > 0) == flat, axis=1, dtype=jnp.float32)
        stats["predicted_experts"] = jnp.sum(jnp.where(real.reshape(-1), right, 0.0))
        loss = options.predictor_weight * jnp.sum(jnp.where(real.reshape(-1), losses, 0.0))
        return Routing(picks, loss, stats)

    def _predict(self, x: jax.Array) -> jax.Array:
        """[tokens, experts]"""
        named, wide = nn.with_logical_partitioning, jnp.promote_types(x.dtype, jnp.float32)
        shape, start = (x.shape[-1], self.options.num_experts), nn.initializers.lecun_normal()
        kernel = self.param("predictor", named(start, ("d_model", "choices")), shape, jnp.float32)
        predicted = jnp.dot(x.astype(wide), kernel.astype(wide), precision=HIGHEST)
        return predicted + self.biases("predictor_bias")

    def _as_predicted(
        self, x: jax.Array, scores: jax.Array, predicted: jax.Array, rows: RowInfo
    ) -> Routing:
        count, real = self.options.num_experts, rows.segment_ids.reshape(-1) != 0
        best, experts = jax.lax.top_k(predicted, min(count, room(MOST * self.share, count)))
        visits = (best > 0) & real[:, None]
        chosen = jnp.any(jax.nn.one_hot(experts, count, dtype=bool) & visits[..., None], axis=1)
        gates = jnp.take_along_axis(self.gates(scores, chosen), experts, axis=1)
        experts = jnp.where(visits, experts, count).astype(jnp.int32)
        tokens = Tokens(x, experts, gates)
        return Routing(tokens, None, self._stats(scores, chosen, real))

    def _stats(self, scores: jax.Array, taken: jax.Array, real: jax.Array) -> dict[str, jax.Array]:
        alone = real & ~jnp.any(taken, axis=1)
        return {
            "expert_load": jnp.sum(taken, axis=0, dtype=scores.dtype),
            "router_entropy": jnp.sum(jnp.where(real, entropy(shares_of(scores)), 0.0)),
            "unvisited": jnp.sum(alone, dtype=jnp.float32),
        }


def _taken(scores: jax.Array, real: jax.Array, share: float) -> jax.Array:
    """Which experts take which tokens: [batch, length, experts], like `scores`."""
    best = partial(best_of_whole, share=share)
    return jax.vmap(best, in_axes=(2, None), out_axes=2)(scores, real)


def _places(taken: jax.Array, slots: int) -> jax.Array:
    """[batch, length, experts] → the places of each expert's tokens [batch, experts, slots], −1 in
    empty slots."""
    length = taken.shape[1]
    places = jnp.where(taken.swapaxes(1, 2), jnp.arange(length), length)
    first = jnp.sort(places, axis=2)[..., :slots]
    return jnp.where(first < length, first, -1)
