"""The dense FFN: the two-matrix MLP with GELU or ReLU², and the gated SwiGLU and GeGLU.

GELU: Hendrycks and Gimpel, 2016, arXiv:1606.08415, in its tanh form. GLU variants: Shazeer, 2020,
arXiv:2002.05202. ReLU²: So et al., 2021, arXiv:2109.08668.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, PositiveInt

from jaxformer.model.channel_mixers.base import ChannelMixer, ChannelMixerConfig
from jaxformer.model.projections import Projection
from jaxformer.model.rows import LayerAux, RowInfo
from jaxformer.parallel.rules import constrain_tokens


class DenseConfig(ChannelMixerConfig):
    """A dense feed-forward network; `kind` is its activation."""

    kind: Literal["gelu", "relu2", "swiglu", "geglu"]
    d_hidden: PositiveInt = Field(description="the width between the matrices")
    bias: bool = Field(False, description="adds a bias to each matrix")

    @property
    def gated(self) -> bool:
        return self.kind in GATED


GATED = ("swiglu", "geglu")
ACTIVATIONS = {
    "gelu": jax.nn.gelu,
    "geglu": jax.nn.gelu,
    "swiglu": jax.nn.silu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


class Dense(ChannelMixer):
    """y = W_out a(W_in x), or y = W_out (a(W_gate x) ⊙ W_in x) when gated."""

    config: DenseConfig

    @nn.compact
    def __call__(self, x: jax.Array, rows: RowInfo) -> tuple[jax.Array, LayerAux]:
        config, init = self.config, self.dims.init
        activation = ACTIVATIONS[config.kind]

        def project_in(name: str) -> jax.Array:
            return Projection(
                (config.d_hidden,),
                ("d_model", "d_hidden"),
                init.matrix(self.dims.d_model),
                config.bias,
                name=name,
            )(x)

        hidden = project_in("in")  # [..., d_hidden]
        hidden = activation(project_in("gate")) * hidden if config.gated else activation(hidden)
        hidden = constrain_tokens(hidden, "d_hidden")
        y = Projection(
            (self.dims.d_model,),
            ("d_hidden", "d_model"),
            init.output_matrix(config.d_hidden, self.dims.num_layers),
            config.bias,
            name="out",
        )(hidden)
        return y, LayerAux({})

    def flops(self, length: int) -> float:
        matrices = 3 if self.config.gated else 2
        return 2.0 * matrices * self.dims.d_model * self.config.d_hidden
