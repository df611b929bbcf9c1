"""The contract of an input: what turns tokens into activations, below and around the layers."""

import math
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from pydantic import Field, PositiveFloat

from jaxformer.model.dims import Dims, Grid
from jaxformer.model.layer import Layer
from jaxformer.model.mixers import Cache, Mixer, build_mixer
from jaxformer.model.norms import Norm
from jaxformer.model.positions import PositionsUnion
from jaxformer.model.residuals import Residual
from jaxformer.model.rows import LayerAux, RowInfo
from jaxformer.schema.kinds import Kind

INPUTS: dict[type["InputsConfig"], type["Inputs"]] = {}  # filled in inputs/__init__.py

MASK = -1  # the id that stands for a hidden token
EMBEDDING_NORM = "normalises what the first layer reads, by a norm as the layers have"


class Masked(NamedTuple):
    """A batch's inputs, of which some places may be hidden that are no ids and cannot be MASK."""

    inputs: jax.Array
    hidden: jax.Array | None = None  # [batch, length], booleans

    @classmethod
    def of(cls, inputs: "jax.Array | Masked") -> "Masked":
        return inputs if isinstance(inputs, Masked) else cls(inputs)


# (x [batch, length, d_model], rows, caches) → (x, caches, the layers' losses and statistics)
OfLayers = Callable[[jax.Array, RowInfo, Cache | None], tuple[jax.Array, Cache | None, LayerAux]]


class InputsConfig(Kind):
    """The options of an input; `kind` names it."""

    registry = INPUTS
    # The kind of data that they are: `data.kind`.
    reads: ClassVar[str] = "text"
    # Whether rows can be cut over the mesh axis `context`.
    can_be_cut: ClassVar[bool] = True
    # Whether the layers see every token, at its place in the row.
    shows_tokens: ClassVar[bool] = True
    # Whether there is a table of embeddings, which outputs may share.
    has_table: ClassVar[bool] = True
    # The random keys that training draws from, `noise` if any.
    keys: ClassVar[tuple[str, ...]] = ()

    mask: bool = Field(
        False,
        description="learns an embedding for hidden tokens, patches or frames, which objectives "
        "need that hide some",
    )
    embedding_norm: bool = Field(False, description=EMBEDDING_NORM)

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        """Check that it can be built at this width, with these positions.

        Raises:
            ValueError: saying what does not fit, and what would.
        """

    @property
    def own_layers(self) -> tuple[Layer, ...]:
        """Layers that it has besides the model's; every token passes them."""
        return ()

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """What a model may be initialized with: a batch's `inputs` of one row."""
        return jax.ShapeDtypeStruct((1, 2), jnp.int32)

    @property
    def grid(self) -> Grid | None:
        """How the tokens that layers see lie in a picture, if they do."""
        return None

    @property
    def numbers(self) -> int | None:
        """How many numbers `Inputs.contents` has for a place; None if there is none."""
        return None


class Share(NamedTuple):
    """The share of a row's tokens that the model's layers see: on average, and at most."""

    mean: float = 1.0
    most: float = 1.0


class Inputs(nn.Module):
    """Turns tokens, or what stands for them, into the layers' input, and what the layers give into
    the outputs' input.

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

    @nn.nowrap
    def rows_of(self, tokens: jax.Array) -> RowInfo:
        """What is known of rows of one document each."""
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        return RowInfo(jnp.broadcast_to(positions, tokens.shape), jnp.ones_like(tokens))

    @nn.nowrap
    def rows_of_outputs(self, rows: RowInfo) -> RowInfo:
        """The rows of the outputs' input, given those of the batch."""
        return rows

    def setup(self) -> None:
        if self.config.embedding_norm:
            self.embedding_norm = Norm(self.residual.norm)

    def embed(self, tokens: jax.Array, rows: RowInfo) -> jax.Array:
        """What the first layer reads of tokens [batch, length]: [batch, length, d_model]."""
        x = self.summed(tokens, rows)
        return self.embedding_norm(x) if self.config.embedding_norm else x

    def summed(self, tokens: jax.Array, rows: RowInfo) -> jax.Array:
        """The same, before `embedding_norm`."""
        raise NotImplementedError

    @nn.nowrap
    def contents(self, tokens: jax.Array, rows: RowInfo) -> jax.Array:
        """What stands at each place, standardised: [batch, length, numbers], float32."""
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
