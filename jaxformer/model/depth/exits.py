"""Exits below the last layer, which share its norm and head, and layers that training skips at
random (LayerSkip: Elhoushi et al., 2024, arXiv:2404.16710)."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, PositiveInt

from jaxformer.model.block import Block
from jaxformer.model.depth.base import DepthConfig, Visit
from jaxformer.model.depth.fixed import FixedConfig
from jaxformer.model.depth.stack import (
    Stack,
    choose_rows,
    count_of,
    first_of_each,
    together,
)
from jaxformer.model.dims import Dims
from jaxformer.model.layer import Layer
from jaxformer.model.mixers import Cache
from jaxformer.model.residuals import Number, Residual, Stream
from jaxformer.model.rows import Exits, LayerAux, RowInfo

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class ExitsConfig(DepthConfig):
    """All layers once, with an exit after every repetition of the pattern and after the last layer.

    In training, layer l of L is skipped by every row with probability
    layer_dropout · (e^{l ln 2 / (L − 1)} − 1), without scaling what is left (section 4.1), and the
    loss is Σ_i e_i L_i / Σ_i e_i over the n exits that are enabled, with
    e_i = exit_scale · Σ_{j≤i} j for i < n − 1 and e_{n−1} = n − 1 + exit_scale · Σ_{j<n−1} j
    (section 4.2): the first exit, of weight 0, is never trained. One exit in `every` is enabled in
    a step, beginning with a random one (the paper's begins one further in every step), and the last
    always is. Outside of training, `exit` leaves after the first so many repetitions:
    `model.depth.exit=2` needs no other parameters.
    """

    kind: Literal["exits"] = "exits"
    decoder = "one token after another, with its first layers as the draft, or to an exit"
    keys = ("depth",)
    layer_dropout: Share = Field(0.1, description="the probability of skipping the last layer")
    exit_scale: Share = Field(0.2, description="the weight of the exits before the last")
    every: PositiveInt = Field(1, description="in a step, one exit in so many has a loss")
    exit: PositiveInt | None = Field(
        None, description="outputs read the stream after so many repetitions; null for all layers"
    )

    @property
    def weighs_losses(self) -> bool:
        return True

    def check(self, num_layers: int, pattern: tuple[Layer, ...]) -> None:
        repetitions, rest = divmod(num_layers, len(pattern))
        exits = repetitions + bool(rest)
        if exits < 2:
            raise ValueError(
                f"depth exits needs at least 2 exits, and num_layers {num_layers} repeats the "
                f"pattern of {len(pattern)} once; deepen the model or shorten the pattern"
            )
        if self.exit is not None and self.exit > exits:
            raise ValueError(
                f"depth.exit {self.exit} is above the {exits} exits of num_layers {num_layers} and "
                f"a pattern of {len(pattern)}; allowed: 1 to {exits}, or null"
            )

    def layers_of_path(
        self, path: str, num_layers: int, pattern_length: int
    ) -> Sequence[int] | None:
        return FixedConfig().layers_of_path(path, num_layers, pattern_length)

    def loss_scales(self, exits: int) -> list[float]:
        """e_i of every exit, bottom up, before they are divided by their sum."""
        sums = [self.exit_scale * i * (i + 1) / 2 for i in range(exits - 1)]
        return [*sums, exits - 1 + sums[-1]]


class SkippedGroup(nn.Module):
    """One repetition of a pattern of layers; rows skip them at random in training."""

    layers: tuple[Layer, ...]
    residual: Residual
    dims: Dims
    layer_dropout: float

    @nn.compact
    def __call__(
        self,
        stream: Stream,
        caches: tuple[Cache, ...] | None,
        rows: RowInfo,
        first: Number,
    ) -> tuple[Stream, tuple[tuple[Cache, ...] | None, tuple[LayerAux, ...], jax.Array]]:
        """As `Group`, with the number of the first layer, and the stream after the last one as an
        array [batch, length, d_model]."""
        longer, said = [], []
        skips = self.layer_dropout > 0 and self.has_rng("depth")
        for index, layer in enumerate(self.layers):
            block = Block(layer, self.residual, self.dims, name=f"layer_{index}")
            cache = None if caches is None else caches[index]
            passed, cache, aux = block(stream, rows, cache, first + index)
            if skips:
                rate = skip_rate(self.layer_dropout, first + index, self.dims.num_layers)
                number_of_rows = len(rows.segment_ids)
                kept = jax.random.bernoulli(self.make_rng("depth"), 1 - rate, (number_of_rows,))
                passed = choose_rows(kept, passed, stream)
            stream = passed
            longer.append(cache)
            said.append(aux)
        state = self.residual.finish(stream)
        return stream, (None if caches is None else tuple(longer), tuple(said), state)


def skip_rate(most: float, layer: Number, num_layers: int) -> jax.Array:
    """most · (e^{layer ln 2 / (num_layers − 1)} − 1)."""
    return most * jnp.expm1(layer * (math.log(2) / (num_layers - 1)))


class ExitStack(Stack):
    """A `Stack` whose outputs can read the stream after every repetition of the pattern."""

    config: ExitsConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, caches: dict[str, Cache] | None = None
    ) -> tuple[jax.Array, dict[str, Cache] | None, LayerAux]:
        stream, first = self.residual.start(x), 0
        longer, said, states = {}, [], []
        training = self.has_rng("depth")
        parts = super().parts() if training or self.is_initializing() else self.parts()
        for name, layers, repetitions in parts:
            count = count_of(repetitions)
            numbers = first_of_each(first, len(layers), repetitions)
            first += len(layers) * count
            cache = None if caches is None else caches[name]
            given = (stream, cache, rows, numbers)
            stream, (longer[name], aux, state) = self._pass(name, layers, repetitions, given)
            said.append((aux, count))
            states.append(state if repetitions is not None else state[None])
        aux = together(said)
        if training:
            aux = aux._replace(exits=self._exits(jnp.concatenate(states)))
        return self.residual.finish(stream), None if caches is None else longer, aux

    def _pass(
        self, name: str, layers: tuple[Layer, ...], repetitions: int | None, given: tuple
    ) -> tuple[Stream, tuple]:
        group = self._lifted(SkippedGroup, repetitions, (0, nn.broadcast, 0))
        options = (layers, self.residual, self.dims, self.config.layer_dropout)
        if repetitions in (None, len(self.layers) // self.pattern_length):
            return group(*options, name=name)(*given)
        # The first of the stacked layers alone.
        params = self.get_variable("params", name, {})
        lowest = jax.tree.map(lambda leaf: leaf[:repetitions], params)
        return group(*options, parent=None).apply({"params": lowest}, *given)

    def _exits(self, states: jax.Array) -> Exits:
        """The exits of a training step, for states [exits, batch, length, d_model]."""
        config, exits = self.config, len(states)
        begin = jax.random.randint(self.make_rng("depth"), (), 0, config.every)
        numbers = jnp.arange(exits)
        enabled = ((numbers - begin) % config.every == 0) | (numbers == exits - 1)
        scales = jnp.where(enabled, jnp.array(config.loss_scales(exits), jnp.float32), 0.0)
        weights = (scales / jnp.sum(scales))[:, None, None]
        return Exits(states, jnp.broadcast_to(weights, states.shape[:3]), enabled)

    @nn.nowrap
    def parts(self) -> list[tuple[str, tuple[Layer, ...], int | None]]:
        """Those below the exit."""
        parts, last = super().parts(), self.config.exit
        if last is None:
            return parts
        if self.layout == "separate":
            return parts[:last]
        name, layers, repetitions = parts[0]
        assert repetitions is not None
        return [(name, layers, min(last, repetitions)), *(parts[1:] if last > repetitions else [])]

    @nn.nowrap
    def visits(self) -> tuple[Visit, ...]:
        """The layers of a row that skips none: training computes skipped layers, too."""
        below = self.pattern_length * (self.config.exit or len(self.layers))
        return tuple(map(Visit, self.layers[:below]))
