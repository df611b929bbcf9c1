"""The dense FFN: the two-matrix MLP with GELU, ReLU or ReLU², and the gated SwiGLU and GeGLU.

GELU: Hendrycks and Gimpel, 2016, arXiv:1606.08415, in its tanh form (`gelu`), as it is defined
(`exact_gelu`), and the quicker x σ(1.702 x) (`quick_gelu`, of CLIP). GLU variants: Shazeer, 2020,
arXiv:2002.05202, of which GeGLU is there in the tanh form and as it is defined (`exact_geglu`,
ModernBERT); with limits and the quick GELU: gpt-oss, 2025, arXiv:2508.10925. ReLU²: So et al.,
2021, arXiv:2109.08668.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, PositiveFloat, PositiveInt

from jaxformer.model.channel_mixers.base import ChannelMixer, ChannelMixerConfig
from jaxformer.model.norms import Norm
from jaxformer.model.projections import Projection
from jaxformer.model.rows import LayerAux, RowInfo
from jaxformer.parallel.rules import constrain_tokens

Activation = Literal[
    "gelu",
    "exact_gelu",
    "quick_gelu",
    "relu",
    "relu2",
    "swiglu",
    "geglu",
    "exact_geglu",
    "quick_geglu",
]
CLAMP = "limits the gate from above, and the other input of the activation on both sides"


class DenseConfig(ChannelMixerConfig):
    """A dense feed-forward network; `kind` is its activation."""

    kind: Activation
    d_hidden: PositiveInt = Field(description="the width between the matrices")
    bias: bool = Field(False, description="adds a bias to each matrix")
    clamp: PositiveFloat | None = Field(None, description=CLAMP)

    @property
    def has_sub_norm(self) -> bool:
        return True

    @property
    def gated(self) -> bool:
        return self.kind in GATED


GATED = ("swiglu", "geglu", "exact_geglu", "quick_geglu")


def quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": jax.nn.gelu,
    "exact_gelu": partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "geglu": jax.nn.gelu,
    "exact_geglu": partial(jax.nn.gelu, approximate=False),
    "swiglu": jax.nn.silu,
    "quick_gelu": quick_gelu,
    "quick_geglu": quick_gelu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


def activate(
    kind: str, hidden: jax.Array, gate: jax.Array | None, clamp: float | None
) -> jax.Array:
    """a(hidden), or a(gate) ⊙ hidden when gated, with the limits that `clamp` gives; `quick_geglu`
    is a(gate) ⊙ (hidden + 1)."""
    if clamp is not None:
        hidden = jnp.clip(hidden, -clamp, clamp)
        gate = None if gate is None else jnp.minimum(gate, clamp)
    if gate is None:
        return ACTIVATIONS[kind](hidden)
    return ACTIVATIONS[kind](gate) * (hidden + 1 if kind == "quick_geglu" else hidden)


class Dense(ChannelMixer):
    """y = W_out a(W_in x), or y = W_out (a(W_gate x) ⊙ W_in x) when gated."""

    config: DenseConfig

    @nn.compact
    def __call__(self, x: jax.Array, rows: RowInfo) -> tuple[jax.Array, LayerAux]:
        config, init = self.config, self.dims.init

        def project_in(name: str) -> jax.Array:
            return Projection(
                (config.d_hidden,),
                ("d_model", "d_hidden"),
                init.inner_matrix(self.dims.d_model),
                config.bias,
                name=name,
            )(x)

        hidden = project_in("in")  # [..., d_hidden]
        gate = project_in("gate") if config.gated else None
        hidden = activate(config.kind, hidden, gate, config.clamp)
        hidden = constrain_tokens(hidden, "d_hidden")
        if self.dims.sub_norm is not None:
            hidden = Norm(self.dims.sub_norm, "d_hidden", name="sub_norm")(hidden)
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
