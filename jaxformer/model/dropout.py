"""Dropout (Srivastava et al., 2014, JMLR 15)."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dropout(nn.Module):
    """x · m / (1 − rate), with m = 0 with probability `rate` and else 1, drawn for every number.

    The rate is rounded to a multiple of 2⁻¹⁶. Without the random stream `dropout`, as outside of
    training, it is x.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dropped = round(self.rate * 2**16)
        if not dropped or not self.has_rng("dropout"):
            return x
        bits = jax.random.bits(self.make_rng("dropout"), x.shape, jnp.uint16)
        return jnp.where(bits >= dropped, x / (1 - dropped / 2**16), 0).astype(x.dtype)
