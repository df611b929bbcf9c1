"""Mixture-of-Depths: some layers are for a part of the tokens (Raposo et al., 2024,
arXiv:2404.02258)."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, PositiveFloat, PositiveInt

from jaxformer.model.block import BLOCKS, Block, squares
from jaxformer.model.depth.base import DepthConfig, Visit
from jaxformer.model.depth.fixed import FixedConfig
from jaxformer.model.depth.routing import Router, continue_through, pass_through, router_flops
from jaxformer.model.depth.stack import Stack
from jaxformer.model.layer import Layer
from jaxformer.model.mixers import Cache
from jaxformer.model.residuals import Number, Stream
from jaxformer.model.rows import LayerAux, RowInfo


class MixtureConfig(DepthConfig):
    """Mixture-of-Depths: every n-th layer is for a share of each row's tokens, chosen by a router;
    the others pass it by."""

    kind: Literal["mixture"] = "mixture"
    decoder = "one token after another, in the layers that a predictor chooses"
    keys = ("depth",)  # their presence says that it is training; nothing is drawn
    has_stages = True

    capacity: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.125, description="the share of a row's tokens that a routed layer takes in training"
    )
    every: PositiveInt = Field(
        2, description="which layers are routed: the last one of every so many, from the bottom up"
    )
    predictor_weight: PositiveFloat = Field(
        0.01, description="the weight of the loss of what predicts the choice for decoding"
    )

    def check(self, num_layers: int, pattern: tuple[Layer, ...]) -> None:
        if self.every > num_layers:
            raise ValueError(
                f"depth.every is {self.every}, but num_layers is {num_layers}, so no layer would "
                f"be routed; allowed: 1 to {num_layers}"
            )

    def period(self, num_layers: int, pattern_length: int) -> int:
        """After how many layers both the pattern and the routed layers repeat."""
        return min(math.lcm(pattern_length, self.every), num_layers)

    def layers_of_path(
        self, path: str, num_layers: int, pattern_length: int
    ) -> Sequence[int] | None:
        period = self.period(num_layers, pattern_length)
        return FixedConfig().layers_of_path(path, num_layers, period)


class RoutedLayer(Layer):
    """A layer for a share of a row's tokens."""

    capacity: float
    predictor_weight: float


class RoutedBlock(Block):
    """x + σ(r) · (block(x) − x) for the tokens that the router picks, x for the others; see
    `Router`, `pass_through` and, for cached calls, `continue_through`.

    With capacity 1, every token passes; where the router's bias is so large that σ(r) = 1, this is
    the plain block.
    """

    layer: RoutedLayer

    @nn.compact
    def __call__(
        self, stream: Stream, rows: RowInfo, cache: Cache | None = None, number: Number = 0
    ) -> tuple[Stream, Cache | None, LayerAux]:
        """See `Block`; of its own it has the statistics `routed`, the number of tokens picked, and
        `predicted`, the number of those that the predictor was right about."""
        layer, real = self.layer, rows.segment_ids != 0
        router = Router(self.dims, layer.capacity, layer.predictor_weight, name="routing")
        choice, learned = router(self.residual.finish(stream), real)
        if cache is not None:
            layers = partial(self._continue, number)
            stream, cache = continue_through(layers, stream, rows, choice, cache)
            return stream, cache, LayerAux({})
        stream, aux = pass_through(partial(self._pass, number), stream, rows, choice)
        stats, loss = {"routed": jnp.sum(choice.picked, dtype=jnp.float32)}, aux.loss
        if learned is not None:
            stats["predicted"] = jnp.sum(learned.right & real, dtype=jnp.float32)
            loss = learned.loss if loss is None else loss + learned.loss
        if self.dims.statistics:
            x = self.residual.finish(stream)
            stats["activation"] = squares(x.reshape(-1, x.shape[-1]), rows)
        return stream, None, LayerAux(aux.stats | stats, loss)

    def _pass(self, number: Number, stream: Stream, rows: RowInfo) -> tuple[Stream, LayerAux]:
        stream, _, aux = super().__call__(stream, rows, None, number)
        return stream, aux

    def _continue(
        self, number: Number, stream: Stream, rows: RowInfo, cache: Cache
    ) -> tuple[Stream, Cache]:
        block = Block(self.layer, self.residual, self.dims, parent=None)
        made = block.apply({"params": self.variables["params"]}, stream, rows, cache, number)
        return made[0], made[1]


BLOCKS |= {
    RoutedLayer: RoutedBlock,
}


class Mixture(Stack):
    """A stack whose pattern is lengthened until it repeats together with the routed layers."""

    config: MixtureConfig

    # A routed layer's cache holds some of the tokens: not known how many to take back.
    takes_back = False

    @nn.nowrap
    def undo(
        self, longer: dict[str, Cache], before: dict[str, Cache], counts: jax.Array
    ) -> dict[str, Cache]:
        return before

    @property
    def pattern(self) -> tuple[Layer, ...]:
        period = self.config.period(len(self.layers), self.pattern_length)
        return tuple(
            self._routed(layer) if self._is_routed(index) else layer
            for index, layer in enumerate(self.layers[:period])
        )

    @nn.nowrap
    def _is_routed(self, index: int) -> bool:
        return index % self.config.every == self.config.every - 1

    @nn.nowrap
    def _routed(self, layer: Layer) -> RoutedLayer:
        config = self.config
        return RoutedLayer(
            mixer=layer.mixer,
            ffn=layer.ffn,
            positions=layer.positions,
            mixer_norm=layer.mixer_norm,
            capacity=config.capacity,
            predictor_weight=config.predictor_weight,
        )

    @nn.nowrap
    def visits(self) -> tuple[Visit, ...]:
        return tuple(
            Visit(layer, self.config.capacity if self._is_routed(index) else 1.0)
            for index, layer in enumerate(self.layers)
        )

    @nn.nowrap
    def own_flops(self) -> float:
        """Of routers and predictors, which see every token."""
        routed = sum(map(self._is_routed, range(len(self.layers))))
        return routed * router_flops(self.dims.d_model, self.config.capacity)
