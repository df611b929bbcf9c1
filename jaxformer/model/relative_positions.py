"""T5's relative positions in a model: the table that all of its layers share."""

from collections.abc import Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.model.layer import Layer
from jaxformer.model.positions import RelativePositionsConfig
from jaxformer.model.rows import RowInfo


def bias_heads(layers: Iterable[Layer]) -> int:
    """How many heads the table has biases for.

    Raises:
        ValueError: the layers that use it differ in their heads.
    """
    relative = (layer for layer in layers if isinstance(layer.positions, RelativePositionsConfig))
    mixers = (layer.mixer for layer in relative if layer.mixer is not None)
    counts = sorted({count for mixer in mixers for count in mixer.bias_heads})
    if len(counts) > 1:
        raise ValueError(
            f"positions are relative, and all layers share one table of biases for every head, but "
            f"there are layers of {' and '.join(map(str, counts))} heads; give them the same "
            f"num_heads, or some of them other positions: rope, alibi, none"
        )
    return counts[0] if counts else 0


def with_bias(rows: RowInfo, table: jax.Array) -> RowInfo:
    """Rows for layers that share the biases `table` [heads, buckets]."""
    every = jnp.broadcast_to(table, (len(rows.positions), *table.shape))
    every = nn.with_logical_constraint(every, ("batch", "heads", "buckets"))
    return rows._replace(relative_bias=every)
