"""One layer: a token mixer and a channel mixer on the residual stream."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.model.channel_mixers import build_channel_mixer
from jaxformer.model.dims import Dims
from jaxformer.model.layer import Layer
from jaxformer.model.mixers import Cache, build_mixer
from jaxformer.model.mixers.base import FirstValues
from jaxformer.model.mixers.kept import mix
from jaxformer.model.residuals import Number, Residual, Stream
from jaxformer.model.rows import LayerAux, RowInfo


class Block(nn.Module):
    """x ← x + mixer(norm(x)), x ← x + ffn(norm(x)), each if the layer has it; `residual` may
    add them in another way."""

    layer: Layer
    residual: Residual
    dims: Dims

    @nn.compact
    def __call__(
        self, stream: Stream, rows: RowInfo, cache: Cache | None = None, number: Number = 0
    ) -> tuple[Stream, Cache | None, LayerAux]:
        """The residual's stream → (stream, the mixer's cache, the layer's loss and statistics).

        The statistics are the channel mixer's, and `activation`: the stream's mean square, summed
        over tokens.

        Args:
            number: of the layer among those that the stream passes, from 0.
        """
        layer, residual, aux = self.layer, self.residual.at(number), LayerAux({})
        shape = rows.segment_ids.shape  # (batch, length)
        # XLA on a CPU has faster code for two dimensions.
        stream = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stream)
        if layer.mixer is not None:
            place = {"name": "mixer", "number": number}
            mixer = build_mixer(layer.mixer, self.dims, layer.positions, **place)
            x = residual.read(stream, "mixer") if layer.mixer_norm else residual.bare(stream)
            given = (x.reshape(*shape, -1), rows, cache)
            if residual.shares_values:
                values, is_first = residual.first_values(stream)
                first = FirstValues(values.reshape(*shape, *values.shape[1:]), is_first)
                y, cache, own = mixer.with_values(*given, first)
                stream = residual.with_values(stream, own.reshape(values.shape))
            else:
                y, cache = mix(mixer, *given)
            stream = residual.write(stream, y.reshape(x.shape), "mixer")
        if layer.ffn is not None:
            ffn = build_channel_mixer(layer.ffn, self.dims, name="ffn")
            y, aux = ffn(residual.read(stream, "ffn"), rows)
            stream = residual.write(stream, y, "ffn")
        if self.dims.statistics:
            activation = squares(residual.finish(stream), rows)
            aux = aux._replace(stats=aux.stats | {"activation": activation})
        return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), stream), cache, aux


def squares(stream: jax.Array, rows: RowInfo) -> jax.Array:
    """The mean square of [batch · length, d_model], summed over tokens that are not padding."""
    wide = stream.astype(jnp.promote_types(stream.dtype, jnp.float32))
    squares = jnp.mean(wide * wide, axis=-1)
    return jnp.sum(jnp.where(rows.segment_ids.reshape(-1) != 0, squares, 0.0))


# The block of a layer by its class; depths add their own.
BLOCKS: dict[type[Layer], type[Block]] = {Layer: Block}


class Group(nn.Module):
    """One repetition of a pattern of layers."""

    layers: tuple[Layer, ...]
    residual: Residual
    dims: Dims

    @nn.compact
    def __call__(
        self, stream: Stream, caches: tuple[Cache, ...] | None, rows: RowInfo, first: Number
    ) -> tuple[Stream, tuple[tuple[Cache, ...] | None, tuple[LayerAux, ...]]]:
        """stream → (stream, (caches, aux)), one of each per layer; `first` is the number of the
        lowest. Arguments are positional, for `nn.scan`."""
        longer, said = [], []
        for index, layer in enumerate(self.layers):
            block = BLOCKS[type(layer)](layer, self.residual, self.dims, name=f"layer_{index}")
            cache = None if caches is None else caches[index]
            stream, cache, aux = block(stream, rows, cache, first + index)
            longer.append(cache)
            said.append(aux)
        return stream, (None if caches is None else tuple(longer), tuple(said))
