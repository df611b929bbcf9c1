"""Layers that change some tokens only, and read them all."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from jaxformer.model.residuals import Number, Residual, Stream


class Held(NamedTuple):
    """A stream in which only the tokens change that `moves` names."""

    stream: Stream
    moves: jax.Array  # [batch, length], bool


@dataclass(frozen=True)
class HeldResidual(Residual):
    """`inner`, whose layers read all tokens and change only those that move: a token that has left
    keeps its state, and later turns make their keys, values and recurrent states of it (Universal
    Transformer, arXiv:1807.03819; CALM, arXiv:2207.07061). So every mixer sees every token at every
    turn, whole rows, pieces and single tokens agree, and no mixer has to know.
    """

    inner: Residual

    def at(self, number: Number) -> Self:
        return replace(self, inner=self.inner.at(number))

    def start(self, x: Any) -> Held:
        """x is a `Held`, whose stream is what `inner` starts from."""
        return Held(self.inner.start(x.stream), x.moves)

    def read(self, stream: Held, sublayer: str) -> jax.Array:
        return self.inner.read(stream.stream, sublayer)

    def bare(self, stream: Held) -> jax.Array:
        return self.inner.bare(stream.stream)

    def write(self, stream: Held, y: jax.Array, sublayer: str) -> Held:
        written = self.inner.write(stream.stream, y, sublayer)

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(stream.moves.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return Held(jax.tree.map(choose, written, stream.stream), stream.moves)

    def finish(self, stream: Held) -> jax.Array:
        return self.inner.finish(stream.stream)
