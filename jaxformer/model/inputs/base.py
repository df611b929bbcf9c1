"""The contract of an input: what turns tokens into activations, below and around the layers."""

import math
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
from jax.typing import DTypeLike
from pydantic import Field, PositiveFloat

from jaxformer.model.dims import Dims
from jaxformer.model.layer import Layer
from jaxformer.model.mixers import Cache, Mixer, build_mixer
from jaxformer.model.positions import PositionsUnion
from jaxformer.model.residuals import Residual
from jaxformer.model.rows import LayerAux, RowInfo
from jaxformer.schema.kinds import Kind

INPUTS: dict[type["InputsConfig"], type["Inputs"]] = {}  # filled in inputs/__init__.py

MASK = -1  # the id that stands for a hidden token

# (x [batch, length, d_model], rows, caches) → (x, caches, the layers' losses and statistics)
OfLayers = Callable[[jax.Array, RowInfo, Cache | None], tuple[jax.Array, Cache | None, LayerAux]]


class InputsConfig(Kind):
    """The options of an input; `kind` names it."""

    registry = INPUTS
    # Whether rows can be cut over the mesh axis `context`.
    can_be_cut: ClassVar[bool] = True
    # Whether the layers see every token, at its place in the row.
    shows_tokens: ClassVar[bool] = True

    mask: bool = Field(
        False,
        description="learns an embedding for hidden tokens, which diffusion, any-order and "
        "token-dropout objectives need",
    )

    def check(self, d_model: int) -> None:
        """Check that it can be built at this width.

        Raises:
            ValueError: saying what does not fit, and what would.
        """

    @property
    def own_layers(self) -> tuple[Layer, ...]:
        """Layers that it has besides the model's; every token passes them."""
        return ()


class Share(NamedTuple):
    """The share of a row's tokens that the model's layers see: on average, and at most."""

    mean: float = 1.0
    most: float = 1.0


class Inputs(nn.Module):
    """Turns tokens into the layers' input, and what they give into the outputs' input.

    Its parameters lie at the top of the model's tree.
    """

    config: InputsConfig
    dims: Dims
    vocab_size: int
    positions: PositionsUnion
    scale: bool | PositiveFloat  # embeddings × √d_model, or × a number
    residual: Residual  # of layers that it has itself
    remat: Literal["none", "dots", "full"] = "none"

    def __call__(
        self, tokens: jax.Array, rows: RowInfo, layers: OfLayers, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None, LayerAux]:
        """tokens [batch, length] → (the outputs' input [batch, length, d_model], the cache, losses
        and statistics, those of the layers among them).

        Args:
            rows: positions and documents of the tokens.
            layers: the model's layers. With a cache they are a pure function, which loops may call.
            cache: what `init_cache` or an earlier call returned, to continue from.
        """
        return layers(self.embed(tokens, rows), rows, cache)

    def embed(self, tokens: jax.Array, rows: RowInfo) -> jax.Array:
        """tokens [batch, length] → [batch, length, d_model]."""
        raise NotImplementedError

    def table(self) -> jax.Array:
        """The matrix [vocab, d_model] that a tied head shares."""
        raise NotImplementedError

    @nn.nowrap
    def init_cache(
        self, batch: int, max_length: int, dtype: DTypeLike, of_layers: Callable[[int], Cache]
    ) -> Cache:
        """The cache before the first token of rows of up to `max_length` tokens; `of_layers` gives
        the layers' for rows of a number of places."""
        return of_layers(max_length)

    @property
    def share(self) -> Share:
        """How many tokens of a row the layers see."""
        return Share()

    @nn.nowrap
    def places(self, length: int) -> int:
        """The most tokens that the layers see of a row of `length` tokens."""
        return math.ceil(self.share.most * length)

    @nn.nowrap
    def own_mixers(self) -> list[Mixer]:
        """The mixers of its own layers."""
        return [
            build_mixer(layer.mixer, self.dims, layer.positions, parent=None)
            for layer in self.config.own_layers
            if layer.mixer is not None
        ]

    @nn.nowrap
    def own_flops(self, length: int) -> float:
        """Forward FLOPs per token of what it has besides the model's layers."""
        return 0.0

    @nn.nowrap
    def own_cache_bytes(self, length: int) -> int:
        """Bytes of its own cache of one row of `length` tokens, besides that of the layers."""
        return 0
