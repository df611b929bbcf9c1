"""A linear map that keeps the heads apart: its matrix is block-diagonal."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class BlockDiagonal(nn.Module):
    """y_h = x_h W_h (+ b_h): [batch, length, heads, head_dim] → the same shape, in x's type."""

    kernel_init: nn.initializers.Initializer
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        heads, head_dim = x.shape[2:]
        names = ("heads", "head_input", "head_dim")
        init = nn.with_logical_partitioning(self.kernel_init, names)
        kernel = self.param("kernel", init, (heads, head_dim, head_dim), jnp.float32).astype(
            x.dtype
        )
        y = jnp.einsum("blhi,hio->blho", x, kernel)
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("heads", "head_dim"))
            y += self.param("bias", zeros, (heads, head_dim), jnp.float32).astype(x.dtype)
        return y
