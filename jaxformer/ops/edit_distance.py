"""Edit distances on the device, of what frames say to what was said."""

import jax
import jax.numpy as jnp


def spoken(path: jax.Array, real: jax.Array, blank: int) -> jax.Array:
    """Which frames [rows, frames] of a path of labels begin a label: those that are neither the
    blank nor what the frame before them is; frames that are not real begin none."""
    before = jnp.pad(path[:, :-1], [(0, 0), (1, 0)], constant_values=blank)
    return real & (path != blank) & (path != before)


def edit_distances(
    path: jax.Array, counts: jax.Array, labels: jax.Array, label_mask: jax.Array
) -> jax.Array:
    """The fewest insertions, deletions and substitutions (Levenshtein, 1966) between the entries
    of path [rows, frames] where `counts` is set and the labels [rows, labels] where their mask is,
    which come first: [rows], integers."""
    places = jnp.arange(labels.shape[1] + 1, dtype=jnp.int32)

    def read(distances: jax.Array, frame: tuple) -> tuple[jax.Array, None]:
        """From the distances to all beginnings of the labels [rows, labels + 1] of what came before
        a frame to those with it."""
        label, counts = (of_rows[:, None] for of_rows in frame)
        substituted = distances[:, :-1] + (labels != label)
        best = jnp.concatenate(
            [distances[:, :1] + 1, jnp.minimum(distances[:, 1:] + 1, substituted)], axis=1
        )
        # A label that is left out costs 1: the minimum over k of best_k + (place − k).
        longer = jax.lax.cummin(best - places, axis=1) + places
        return jnp.where(counts, longer, distances), None

    nothing = jnp.broadcast_to(places, (len(path), len(places)))
    distances, _ = jax.lax.scan(read, nothing, (path.T, counts.T))
    last = jnp.sum(label_mask, axis=1, dtype=jnp.int32)
    return jnp.take_along_axis(distances, last[:, None], axis=1)[:, 0]
