"""Attention residuals: sub-layers attend to what all below them have made (Kimi Team, 2026,
arXiv:2603.15031)."""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, PositiveInt

from jaxformer.model.layer import Layer, count_sublayers
from jaxformer.model.norms import NormConfig
from jaxformer.model.placements import Number
from jaxformer.model.residuals.base import Residual, ResidualConfig, Weight
from jaxformer.model.residuals.streams import weighted_sum
from jaxformer.parallel.stream import constrain_stream, gather_tokens


class AttentionResidualsConfig(ResidualConfig):
    """Every sub-layer attends, with a learned query, to the embedding and the outputs of all
    sub-layers below it (arXiv:2603.15031). Layers pass all of these on, as many times d_model as
    there are: `block_layers` makes them fewer."""

    kind: Literal["attention_residuals"] = "attention_residuals"
    reads_bare = False
    has_exits = False
    block_layers: PositiveInt | None = Field(
        None,
        description="sums the outputs of so many layers to one that is attended to (the block "
        "form); null attends to every sub-layer's output",
    )

    def check(self, d_model: int, norm: NormConfig, layers: Sequence[Layer], depth: str) -> None:
        self.check_additive(norm)
        self.check_fixed(depth)
        if len({(layer.mixer is None, layer.ffn is None) for layer in layers}) > 1:
            raise ValueError(
                "residual attention_residuals counts sub-layers, but some layers have a mixer or "
                "an FFN that others have not; give all layers both, or the same one"
            )


class AttentionResiduals(Residual):
    """h_q = Σ_i softmax_i(w_q · RMSNorm(v_i)) v_i is what sub-layer q reads, where v_0 is the
    embedding and v_i = f_i(N(h_i)); w starts at 0. In the block form, v_i is the
    sum of the outputs of block i, as far as there are some. The model's output is read in the same
    way, with a query of its own.

    The stream has a place for every v_i, which is 0 before it is written.
    """

    config: AttentionResidualsConfig

    def start(self, x: jax.Array) -> jax.Array:
        return jnp.pad(x[..., None, :], [(0, 0), (0, 0), (0, self._places - 1), (0, 0)])

    def read(self, stream: jax.Array, sublayer: str) -> jax.Array:
        blocks_begun = -(-self._order(sublayer) // self._block)
        x = self._attend(f"{sublayer}_query", stream, 1 + blocks_begun)
        return gather_tokens(self.placement(sublayer).before(x))

    def write(self, stream: jax.Array, y: jax.Array, sublayer: str) -> jax.Array:
        place = 1 + self._order(sublayer) // self._block
        y = self.addend(y, sublayer)
        so_far = jax.lax.dynamic_index_in_dim(stream, place, axis=1, keepdims=False)
        written = jax.lax.dynamic_update_index_in_dim(stream, so_far + y, place, axis=1)
        return constrain_stream(written)

    def finish(self, stream: jax.Array) -> jax.Array:
        """Their sum, which is the plain residual's stream."""
        return jnp.sum(stream, axis=-2)

    def last(self, stream: jax.Array) -> jax.Array:
        return self._attend("last_query", stream, self._places)

    def flops(self, layer: Layer, d_model: int) -> float:
        """Of products with queries, and of weighted sums, over all places."""
        return count_sublayers([layer]) * self.last_flops(d_model)

    def last_flops(self, d_model: int) -> float:
        return 4.0 * self._places * d_model

    def _attend(self, name: str, stream: jax.Array, known: Number) -> jax.Array:
        query = Weight(nn.initializers.zeros, stream.shape[-1:], ("vector",), name=name)()
        return over_depth(query, stream, known, self.norm.eps)

    def _order(self, sublayer: str) -> Number:
        """The number of a sub-layer, from 0 at the bottom."""
        return self._of_layer * self.number + (self._of_layer - 1) * (sublayer == "ffn")

    @property
    def _of_layer(self) -> int:
        """How many sub-layers a layer has."""
        return max(1, count_sublayers(self.layers[:1]))

    @property
    def _block(self) -> int:
        """How many sub-layers share a place."""
        layers = self.config.block_layers
        return 1 if layers is None else layers * self._of_layer

    @property
    def _places(self) -> int:
        return 1 - (-count_sublayers(self.layers) // self._block)


def over_depth(query: jax.Array, sources: jax.Array, known: Number, eps: float) -> jax.Array:
    """Σ_i softmax_i(query · RMSNorm(v_i)) v_i over the first `known` sources v_i.

    Args:
        query: [d_model].
        sources: [..., places, d_model].
    """
    v = sources.astype(jnp.promote_types(sources.dtype, jnp.float32))
    products = jnp.sum(query.astype(v.dtype) * v, axis=-1)
    logits = products * jax.lax.rsqrt(jnp.mean(v * v, axis=-1) + eps)  # [..., places]
    is_known = jnp.arange(sources.shape[-2]) < known
    weights = jax.nn.softmax(jnp.where(is_known, logits, -jnp.inf), axis=-1)
    return weighted_sum(weights, sources)
