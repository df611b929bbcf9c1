"""The linear map inside mixers and FFNs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


class Projection(nn.Module):
    """y = x W (+ b), over one or several input axes, to one or several output axes.

    Axes are not merged: XLA then lays out what comes and goes as a kernel of attention wants it.
    `names` are the logical axes of the kernel, inputs first; the product is in x's type, and is
    named `projection` for rematerialisation policies.
    """

    features: tuple[int, ...]
    names: tuple[str, ...]
    kernel_init: nn.initializers.Initializer
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        num_inputs = len(self.names) - len(self.features)
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(self.kernel_init, self.names),
            (*x.shape[x.ndim - num_inputs :], *self.features),
            jnp.float32,
        )
        y = checkpoint_name(jnp.tensordot(x, kernel.astype(x.dtype), num_inputs), "projection")
        if self.use_bias:
            bias = self.param(
                "bias",
                nn.with_logical_partitioning(nn.initializers.zeros, self.names[num_inputs:]),
                self.features,
                jnp.float32,
            )
            y += bias.astype(x.dtype)
        return y
