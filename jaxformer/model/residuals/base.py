"""The contract of a residual: how sub-layers read the stream that layers pass on, and change it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from jaxformer.model.dropout import Dropout
from jaxformer.model.layer import Layer, count_sublayers
from jaxformer.model.mixers.base import FirstValues
from jaxformer.model.norms import NormConfig
from jaxformer.model.placements import PLACEMENTS, Number, Placement
from jaxformer.parallel.stream import gather_tokens, scatter_tokens
from jaxformer.schema.kinds import Kind

Stream = Any  # a pytree of arrays [batch, length, ...], each residual's own

RESIDUALS: dict[type["ResidualConfig"], type["Residual"]] = {}  # filled in residuals/__init__.py


class ResidualConfig(Kind):
    """The options of a residual; `kind` names it."""

    registry = RESIDUALS
    # Whether a mixer may go without the norm before it, see `LayerConfig.mixer_norm`.
    reads_bare: ClassVar[bool] = True
    # Whether layers that belong to inputs may have it.
    in_inputs: ClassVar[bool] = True
    # Whether the model's output may be read below the last layer.
    has_exits: ClassVar[bool] = True

    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="the share of features that are 0 in training, of embeddings and of what every "
        "sub-layer gives (arXiv:1706.03762, section 5.4)",
    )

    @property
    def keys(self) -> tuple[str, ...]:
        """The random keys that it draws from in training."""
        return ("dropout",) if self.dropout else ()

    def check(self, d_model: int, norm: NormConfig, layers: Sequence[Layer], depth: str) -> None:
        """Check that it fits these layers, and a depth of this kind.

        Raises:
            ValueError: saying what does not fit, and what would.
        """

    def check_additive(self, norm: NormConfig) -> None:
        """Check that norms leave the stream as it is.

        Raises:
            ValueError: they do not.
        """
        if not PLACEMENTS[norm.placement].is_additive:
            allowed = ", ".join(name for name, each in PLACEMENTS.items() if each.is_additive)
            raise ValueError(
                f"norm.placement is {norm.placement}, which changes the whole stream after every "
                f"sub-layer, and residual {self.kind} has more than one; allowed: {allowed}"
            )

    def check_fixed(self, depth: str) -> None:
        """Check that every token passes every layer once.

        Raises:
            ValueError: it does not.
        """
        if depth != "fixed":
            raise ValueError(
                f"depth is {depth}, but residual {self.kind} lets layers read what all layers "
                f"below them have made, which they pass once; give depth fixed"
            )


@dataclass(frozen=True)
class Residual:
    """The stream that layers pass on, and how a sub-layer, `mixer` or `ffn`, reads and changes it.
    Within a layer, tokens are one axis between `start` and `finish`: [batch · length, ...].

    Parameters of `read` and `write` belong to the layer in whose compact method they are called.
    A layer calls them of its own copy, see `at`.
    """

    config: ResidualConfig
    norm: NormConfig
    # All layers that the stream passes, bottom up, and the number of the one that it is at.
    layers: tuple[Layer, ...] = field(default=(), kw_only=True)
    number: Number = field(default=0, kw_only=True)
    # What the methods leave for each other within a layer: modules, and what `read` has computed.
    made: dict[str, Any] = field(
        default_factory=dict, kw_only=True, compare=False, hash=False, repr=False
    )

    def at(self, number: Number) -> Self:
        """The residual of the layer with this number."""
        return replace(self, number=number, made={})

    def start(self, x: jax.Array) -> Stream:
        """The stream below the first layer, of x [batch, length, d_model]."""
        raise NotImplementedError

    def read(self, stream: Stream, sublayer: str) -> jax.Array:
        """What the sub-layer reads, [batch · length, d_model]."""
        raise NotImplementedError

    def bare(self, stream: Stream) -> jax.Array:
        """What a sub-layer reads that has no norm, [batch · length, d_model]."""
        return gather_tokens(self.finish(stream))

    def write(self, stream: Stream, y: jax.Array, sublayer: str) -> Stream:
        """The stream after the sub-layer has given y [batch · length, d_model]."""
        raise NotImplementedError

    def finish(self, stream: Stream) -> jax.Array:
        """The stream as one array [..., d_model]; called inside layers and above the last."""
        raise NotImplementedError

    def last(self, stream: Stream) -> jax.Array:
        """The stream above all layers of a model as one array [batch, length, d_model]. Parameters
        belong to the depth in whose compact method it is called."""
        return self.finish(stream)

    def flops(self, layer: Layer, d_model: int) -> float:
        """Forward FLOPs per token of what the layer's sub-layers read and write, where that is more
        than a sum."""
        return 0.0

    def last_flops(self, d_model: int) -> float:
        """Forward FLOPs per token of `last`."""
        return 0.0

    # Whether mixers mix the values of the first layer with their own.
    shares_values: ClassVar[bool] = False

    def first_values(self, stream: Stream) -> FirstValues:
        """The values of the first layer, [batch · length, kv_heads, head_dim]."""
        raise NotImplementedError

    def with_values(self, stream: Stream, values: jax.Array) -> Stream:
        """The stream after a mixer has made these values."""
        raise NotImplementedError

    def placement(self, sublayer: str) -> Placement:
        """Where the norms of a sub-layer stand."""
        return PLACEMENTS[self.norm.placement](
            self.norm,
            sublayer,
            self.number,
            len(self.layers),
            count_sublayers(self.layers),
            self.made,
        )

    def addend(self, y: jax.Array, sublayer: str) -> jax.Array:
        """What a sub-layer's output y [batch · length, d_model] adds to the stream."""
        y = Dropout(self.config.dropout, name=f"{sublayer}_dropout")(y)
        return self.placement(sublayer).added(scatter_tokens(y))


class Weight(nn.Module):
    """A parameter of a residual, which is no module itself."""

    start: Callable[..., jax.Array]
    shape: tuple[int, ...]
    names: tuple[str, ...]

    @nn.compact
    def __call__(self) -> jax.Array:
        start = nn.with_logical_partitioning(self.start, self.names)
        weight: jax.Array = self.param("weight", start, self.shape, jnp.float32)
        return weight
