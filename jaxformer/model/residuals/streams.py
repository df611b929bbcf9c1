"""What residuals with several streams share: sub-layers read a sum of them, and write into each."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import Field

from jaxformer.model.layer import Layer, count_sublayers
from jaxformer.model.norms import NormConfig
from jaxformer.model.placements import Number
from jaxformer.model.residuals.base import Residual, ResidualConfig
from jaxformer.parallel.stream import constrain_stream, gather_tokens


class StreamsConfig(ResidualConfig):
    """The options of all residuals with several streams."""

    reads_bare = False

    streams: Annotated[int, Field(ge=2, le=16)] = Field(
        4, description="how many streams layers pass on, each d_model wide"
    )

    def check(self, d_model: int, norm: NormConfig, layers: Sequence[Layer], depth: str) -> None:
        self.check_additive(norm)

    @property
    def weights_per_stream(self) -> int:
        """How many weights per sub-layer come of each stream by products with its features."""
        return 0


class Connection(NamedTuple):
    """How a sub-layer f is connected with n streams X [batch · length, n, d_model]:
    x = Σ_j read_j X_j, and X_i ← Σ_j mix_ij X_j + write_i f(x). Weights may be the same for all
    tokens."""

    read: jax.Array  # [batch · length, n] or [n]
    mix: jax.Array  # [batch · length, n, n] or [n, n]
    write: jax.Array  # [batch · length, n] or [n]


class Streams(Residual):
    """n copies of the input, which layers read and write with the weights of a `Connection`. The
    model's output is their mean; papers take the sum, which the final norm makes the same."""

    config: StreamsConfig

    def connect(self, streams: jax.Array, sublayer: str) -> Connection:
        """The weights of a sub-layer, for streams [batch · length, n, d_model]."""
        raise NotImplementedError

    def start(self, x: jax.Array) -> jax.Array:
        shape = (*x.shape[:-1], self.config.streams, x.shape[-1])
        return jnp.broadcast_to(x[..., None, :], shape)

    def read(self, stream: jax.Array, sublayer: str) -> jax.Array:
        connection = self.made[sublayer] = self.connect(stream, sublayer)
        x = weighted_sum(connection.read, stream)
        return gather_tokens(self.placement(sublayer).before(x))

    def write(self, stream: jax.Array, y: jax.Array, sublayer: str) -> jax.Array:
        _, mix, write = self.made[sublayer]
        y = self.addend(y, sublayer)
        wide = jnp.promote_types(stream.dtype, jnp.float32)
        mixed = weighted_sum(mix, stream.astype(wide)[..., None, :, :])
        added = write[..., None].astype(wide) * y.astype(wide)[..., None, :]
        return constrain_stream((mixed + added).astype(stream.dtype))

    def finish(self, stream: jax.Array) -> jax.Array:
        return jnp.mean(stream, axis=-2)

    def flops(self, layer: Layer, d_model: int) -> float:
        """Of reading, mixing and writing, and of the products that weights come of."""
        n = self.config.streams
        per_feature = n * n + 2 * n + n * self.config.weights_per_stream
        return 2.0 * d_model * per_feature * count_sublayers([layer])

    def turn(self, sublayer: str) -> Number:
        """The number of the stream whose turn it is: sub-layers begin with one after another."""
        return (2 * self.number + (sublayer == "ffn")) % self.config.streams


def weighted_sum(weights: jax.Array, x: jax.Array) -> jax.Array:
    """Σ_i weights_i x_i: weights [..., n], x [..., n, d_model] → [..., d_model], in float32 or
    wider, returned in x's type."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    # Not a product of matrices: those of n would be copied into tiles that they do not fill.
    return jnp.sum(weights[..., None].astype(wide) * x.astype(wide), axis=-2).astype(x.dtype)
