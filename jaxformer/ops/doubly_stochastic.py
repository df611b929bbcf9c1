"""Doubly stochastic matrices, whose rows and columns sum to 1, of any numbers.

Sinkhorn's iteration: Sinkhorn and Knopp, 1967. Sums of permutations: Birkhoff, 1946; for mixing
residual streams, arXiv:2601.05732.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp


@partial(jax.checkpoint, static_argnums=1)
def sinkhorn(logits: jax.Array, iterations: int) -> jax.Array:
    """exp(logits) [..., n, n], whose columns and then rows are divided by their sums so often.

    Rows sum to 1 exactly, and columns nearly: with logits far apart the iteration is slow, and
    twenty turns leave errors of a tenth. The iterations are computed again for the gradient.
    """

    def divide(_: jax.Array, logits: jax.Array) -> jax.Array:
        logits = logits - logsumexp(logits, axis=-2, keepdims=True)
        return logits - logsumexp(logits, axis=-1, keepdims=True)

    return jnp.exp(jax.lax.fori_loop(0, iterations, divide, logits))


def permutations(size: int) -> np.ndarray:
    """All permutation matrices [size!, size, size], the identity first."""
    orders = np.array(list(itertools.permutations(range(size))))
    return np.eye(size)[orders]


def mixed_permutations(logits: jax.Array, size: int) -> jax.Array:
    """Σ_k softmax(logits)_k P_k over all permutations P_k: logits [..., size!] → [..., size,
    size], exactly doubly stochastic."""
    weights = jax.nn.softmax(logits, axis=-1)
    return jnp.tensordot(weights, jnp.asarray(permutations(size), weights.dtype), 1)
