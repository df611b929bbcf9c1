"""The diagonal recurrence h_t = a_t ⊙ h_{t−1} + b_t, per channel."""

import jax
import jax.numpy as jnp


def diagonal_recurrence(
    a: jax.Array, b: jax.Array, segment_ids: jax.Array, state: jax.Array, last_segment: jax.Array
) -> jax.Array:
    """h_t = a_t ⊙ h_{t−1} + b_t for all t by an associative scan, starting anew at each document.

    Args:
        a, b: [batch, length, channels].
        segment_ids: [batch, length]; the state is dropped where they change.
        state: [batch, channels], h before the first token.
        last_segment: [batch], the document that `state` belongs to.

    Returns:
        h of every token, [batch, length, channels].
    """
    before = jnp.concatenate([last_segment[:, None], segment_ids[:, :-1]], axis=1)
    a = jnp.where((segment_ids == before)[:, :, None], a, 0.0)
    b = b.at[:, 0].add(a[:, 0] * state)

    def combine(
        left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        (a_left, b_left), (a_right, b_right) = left, right
        return a_left * a_right, a_right * b_left + b_right

    return jax.lax.associative_scan(combine, (a, b), axis=1)[1]
