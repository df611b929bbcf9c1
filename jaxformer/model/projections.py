"""The linear maps of mixers and feed-forward networks, including those into and out of heads."""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxformer.model.dims import Dims
from jaxformer.model.norms import Norm, rms_normalize


class Projection(nn.Module):
    """y = x W (+ b), over one or several input axes, to one or several output axes.

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
        product = jax.lax.platform_dependent(
            x,
            kernel.astype(x.dtype),
            tpu=partial(jnp.tensordot, axes=num_inputs),
            default=partial(_product_of_matrices, num_inputs=num_inputs),
        )
        y = checkpoint_name(product, "projection")
        if self.use_bias:
            bias = self.param(
                "bias",
                nn.with_logical_partitioning(nn.initializers.zeros, self.names[num_inputs:]),
                self.features,
                jnp.float32,
            )
            y += bias.astype(x.dtype)
        return y


def _product_of_matrices(x: jax.Array, kernel: jax.Array, num_inputs: int) -> jax.Array:
    """`tensordot` with merged axes: the gradient is then a product of matrices as well, which XLA
    on a CPU otherwise copies to transpose it. With separate axes, a TPU lays out inputs and outputs
    as attention wants them."""
    outputs = kernel.shape[num_inputs:]
    matrix = kernel.reshape(-1, math.prod(outputs))
    y = x.reshape(-1, matrix.shape[0]) @ matrix
    return y.reshape(*x.shape[: x.ndim - num_inputs], *outputs)


def project_heads(
    x: jax.Array,
    dims: Dims,
    name: str,
    num_heads: int,
    head_dim: int,
    *,
    axis: str = "heads",
    use_bias: bool = False,
) -> jax.Array:
    """[batch, length, d_model] → [batch, length, heads, head_dim], inside a compact call; `axis` is
    the logical axis of the heads."""
    return Projection(
        (num_heads, head_dim),
        ("d_model", axis, "head_dim"),
        dims.init.matrix(dims.d_model),
        use_bias,
        name=name,
    )(x)


def sub_normed(o: jax.Array, dims: Dims) -> jax.Array:
    """o [batch, length, heads, head_dim] as the output matrix of attention reads it: normalised
    over all heads if `dims.sub_norm` says so, inside a compact call."""
    if dims.sub_norm is None:
        return o
    merged = o.reshape(*o.shape[:2], -1)
    return Norm(dims.sub_norm, "heads", name="sub_norm")(merged).reshape(o.shape)


def merge_heads(y: jax.Array, dims: Dims) -> jax.Array:
    """W_o concat_h y_h: [batch, length, heads, head_dim] → [batch, length, d_model], inside a
    compact call."""
    num_heads, head_dim = y.shape[2:]
    return Projection(
        (dims.d_model,),
        ("heads", "head_dim", "d_model"),
        dims.init.output_matrix(num_heads * head_dim, dims.num_layers),
        name="output",
    )(y)


class HeadsOutput(nn.Module):
    """y = W_o concat_h (scale ⊙ RMSNorm(o_h) ⊙ gate(W_g x)_h).

    `gate` is the activation of the gate, or None for no gate; without `scale` the norm has no
    weights.
    """

    dims: Dims
    gate: Callable[[jax.Array], jax.Array] | None = None
    scale: bool = True
    eps: float = 1e-6

    @nn.compact
    def __call__(self, o: jax.Array, x: jax.Array) -> jax.Array:
        """o [batch, length, heads, head_dim], x [batch, length, d_model] → y, shaped like x."""
        num_heads, head_dim = o.shape[2:]
        y = rms_normalize(o, self.eps)
        if self.scale:
            ones = nn.with_logical_partitioning(nn.initializers.ones, ("head_dim",))
            y *= self.param("scale", ones, (head_dim,), jnp.float32).astype(y.dtype)
        if self.gate is not None:
            y *= self.gate(project_heads(x, self.dims, "gate", num_heads, head_dim))
        return merge_heads(y, self.dims)
