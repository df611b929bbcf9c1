"""The linear map inside mixers and FFNs."""

import math

import flax.linen as nn
import jax


class Projection(nn.Module):
    """y = x W (+ b), over one or several input axes, to one or several output axes.

    The product is two-dimensional, [batch · length, inputs] × [inputs, outputs]: its weight
    gradient then is one plain matrix product, which XLA has fast code for on every platform.

    `names` are the logical axes of the kernel, inputs first; the product is in x's type.
    """

    features: tuple[int, ...]
    names: tuple[str, ...]
    kernel_init: nn.initializers.Initializer
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        num_inputs = len(self.names) - len(self.features)
        inputs, rows = x.shape[x.ndim - num_inputs :], x.shape[: x.ndim - num_inputs]
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(self.kernel_init, self.names),
            (*inputs, *self.features),
        )
        flat = kernel.astype(x.dtype).reshape(math.prod(inputs), math.prod(self.features))
        y = (x.reshape(-1, flat.shape[0]) @ flat).reshape(*rows, *self.features)
        if self.use_bias:
            bias = self.param(
                "bias",
                nn.with_logical_partitioning(nn.initializers.zeros, self.names[num_inputs:]),
                self.features,
            )
            y += bias.astype(x.dtype)
        return y
