"""Value residuals: attention mixes the values of the first layer with its own (ResFormer: Zhou et
al., 2024, arXiv:2410.17897)."""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.model.layer import Layer
from jaxformer.model.mixers.base import FirstValues
from jaxformer.model.norms import NormConfig
from jaxformer.model.residuals.base import Residual, ResidualConfig
from jaxformer.parallel.stream import constrain_stream, gather_tokens

ValueStream = dict[str, Any]  # x [..., d_model], values [..., kv_heads, head_dim]


class ValueResidualConfig(ResidualConfig):
    """A sub-layer's output is added to the stream, and attention mixes the values of the first
    layer with its own (ResFormer, arXiv:2410.17897). Every mixer is attention, with as many values
    as the first."""

    kind: Literal["value_residual"] = "value_residual"
    in_inputs = False

    def check(self, d_model: int, norm: NormConfig, layers: Sequence[Layer], depth: str) -> None:
        self.check_fixed(depth)
        if layers[0].mixer is None:
            raise ValueError(
                "residual value_residual mixes the values of the lowest layer with those of "
                "others, but it has no mixer; give it attention"
            )
        shapes = [layer.mixer.value_shape(d_model) for layer in layers if layer.mixer is not None]
        if None in shapes or len(set(shapes)) > 1:
            kinds = ", ".join(sorted({layer.mixer_kind for layer in layers} - {"none"}))
            raise ValueError(
                f"residual value_residual mixes the values of all mixers, so they have to be "
                f"attention, with the same num_kv_heads and head_dim; they are {kinds}"
            )


class ValueResidual(Residual):
    """x + f(N(x)), where attention has the values λ₁ v_l + λ₂ v_1 in layer l > 1, with numbers λ of
    each layer that start at ½."""

    config: ValueResidualConfig
    shares_values = True

    def start(self, x: jax.Array) -> ValueStream:
        mixer = self.layers[0].mixer
        shape = None if mixer is None else mixer.value_shape(x.shape[-1])
        assert shape is not None  # as `check` has made sure
        names = ("batch", "length", "kv_heads", "head_dim")
        values = nn.with_logical_constraint(jnp.zeros((*x.shape[:2], *shape), x.dtype), names)
        return {"x": x, "values": values}

    def read(self, stream: ValueStream, sublayer: str) -> jax.Array:
        return gather_tokens(self.placement(sublayer).before(stream["x"]))

    def write(self, stream: ValueStream, y: jax.Array, sublayer: str) -> ValueStream:
        x = self.placement(sublayer).joined(stream["x"], self.addend(y, sublayer))
        return stream | {"x": constrain_stream(x)}

    def finish(self, stream: ValueStream) -> jax.Array:
        x: jax.Array = stream["x"]
        return x

    def first_values(self, stream: ValueStream) -> FirstValues:
        return FirstValues(stream["values"], self.number == 0)

    def with_values(self, stream: ValueStream, values: jax.Array) -> ValueStream:
        kept = jnp.where(self.number == 0, values, stream["values"])
        return stream | {"values": kept}
