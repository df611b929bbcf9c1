"""A few lines of plain JAX that XLA's CPU compiler gets wrong: `python -m tests.broadcast_product`.

Printed are, on one line, the largest errors of two products, NaN where a product is NaN.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tests.guarded import guarded

ROWS, WIDTH, COLUMNS = 64, 128, 32  # smaller products are computed in a way that is right


@jax.jit
def of_one_number(x: jax.Array, number: jax.Array) -> jax.Array:
    """(Σ x²) x W, where every entry of W is `number`."""
    return jnp.sum(x * x, -1, keepdims=True) * x @ jnp.broadcast_to(number, (WIDTH, COLUMNS))


@jax.jit
def of_one_column(x: jax.Array, column: jax.Array) -> jax.Array:
    """The same for the two halves of x, where every column of both W is `column`."""
    left = (jnp.sum(x * x, -1, keepdims=True) * x).reshape(2, -1, WIDTH)
    return left @ jnp.broadcast_to(column[:, None], (2, WIDTH, COLUMNS))


def errors() -> tuple[float, float]:
    """Relative to the largest entry."""
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, WIDTH)).astype(np.float32)
    left = (x * x).sum(-1, keepdims=True) * x

    def error(actual: jax.Array, column: np.ndarray) -> float:
        expected = left @ np.tile(column[:, None], COLUMNS)
        return float(abs(actual.reshape(expected.shape) - expected).max() / abs(expected).max())

    number, column = np.float32(1.5), random.normal(size=WIDTH).astype(np.float32)
    return (
        error(of_one_number(x, guarded(number)), np.full(WIDTH, number)),
        error(of_one_column(x, guarded(column)), column),
    )


if __name__ == "__main__":
    print(*errors())
