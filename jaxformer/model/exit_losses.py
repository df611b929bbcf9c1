"""The loss of a model that is trained through several exits."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.model.outputs import Outputs
from jaxformer.model.rows import Exits
from jaxformer.ops.cross_entropy import LossSums
from jaxformer.ops.token_losses import TokenLosses

PyTree = Any


def exit_losses(
    outputs: Outputs,
    head: PyTree,
    exits: Exits,
    targets: jax.Array,
    loss_mask: jax.Array,
    z_loss: float,
) -> tuple[LossSums, jax.Array]:
    """Σ_n Σ_t mask_t w_nt (CE_nt + z_loss · log²Z_nt), whose gradient also flows to the weights w.

    One exit's logits are computed after another's, in chunks.

    Args:
        exits: states as the outputs read them.
        targets: [batch, length].
        loss_mask: [batch, length], booleans, or the weight of every token's loss.

    Returns:
        The sums, and Σ_t mask_t CE_nt of every exit [exits], NaN where it is not enabled.
    """

    def of_exit(one: tuple[jax.Array, jax.Array]) -> TokenLosses:
        def compute(state: jax.Array) -> TokenLosses:
            return outputs.losses(head, state, targets)

        def nothing(state: jax.Array) -> TokenLosses:
            shapes = jax.eval_shape(compute, state)
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        state, enabled = one
        return jax.lax.cond(enabled, compute, nothing, state)

    cross, squares = jax.lax.map(of_exit, (exits.states, exits.enabled))  # [exits, batch, length]
    # Where nothing is learnt, what there is need not be finite.
    cross, squares = (jnp.where(loss_mask != 0, x, 0.0) * loss_mask for x in (cross, squares))
    each = jnp.where(exits.enabled, jnp.sum(cross, axis=(1, 2)), jnp.nan)
    sums = LossSums(
        loss=jnp.sum(exits.weights * cross),
        z_loss=z_loss * jnp.sum(exits.weights * squares),
        tokens=jnp.sum(loss_mask, dtype=jnp.float32),
    )
    return sums, jax.lax.stop_gradient(each)
